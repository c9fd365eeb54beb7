"""The sample store: samplers and any number of trainers share a run through a Redis-compatible server.

      samplers -- append --> stream of fragments -- one consumer group --> trainers
         ^                                                                    |
         +------------- weights: one key, one number of version <-- publish --+

A step that changes more than one key is a script (`scripts`), which the server executes as a whole. So
fragments count as learned from in the same instant in which the weights appear that hold them. At any
instant, appended = learned + dropped + refused + in the stream.

`address` reaches the server and waits for it, `embedded` starts one. `run` has the steps of a run there,
over its `keys`. `pool` is a trainer's side: `consumer` has its fragments, `shared_weights` the weights.
`sample` is a sampler, `local` the samplers that a process starts and replaces. `make` puts them together.
"""
