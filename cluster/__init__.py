"""Samplers: where they run, and when they are asked.

            weights (version, arrays)
      +--------------------------------------+
      v                                      |
  samplers -- rollout [T+1, N] --> pool --> learner -- weights --> evaluator
  (environments and policy;                  ^                         |
   one call per fragment)                    +------- scores ----------+

A sampler sends only the things that only it can know: observations, actions, their probabilities,
rewards, ends. Values, advantages and statistics are computed by the learner. There is never a call
for each environment step.

|           | consumes             | produces             | waits for              | unblocked by             |
|-----------|----------------------|----------------------|------------------------|--------------------------|
| sampler   | weights, a request   | its columns of a     | the next request       | the pool's request; the  |
|           |                      | rollout, episodes    |                        | learner's end ends it    |
| pool      | outcomes: parts or   | rollouts             | lockstep: the outcome  | an outcome, a signal     |
|           | losses               |                      | of each sampler asked  |                          |
|           |                      |                      | asynchronous: as many  |                          |
|           |                      |                      | parts as samplers      |                          |
| supervisor| samplers' answers,   | outcomes; a sampler  | nothing for longer     | an answer, the end of a  |
|           | their end or silence | for each lost one    | than half a second     | process, the clock       |
| learner   | rollouts, scores     | weights, checkpoints | a rollout; at the end, | the pool, the evaluator, |
|           |                      |                      | the last scores        | a signal                 |
| evaluator | weights              | scores               | the next weights       | the learner's submission |
| store     | weights that a       | the newest weights;  | nothing. Samplers wait | a publication, room in   |
|           | trainer publishes,   | each fragment, for   | for room in it,        | the stream, a fragment;  |
|           | fragments            | one trainer          | trainers for fragments | its loss ends the wait   |

With `--store`, the samplers append to a server instead, and any number of trainers take from it; see
`store`:

  samplers -- fragments --> store --> trainers
      ^                       ^          |
      +---- newest weights ---+-- publications

Each engine (`engines/`: inline, local, xparl, ray) runs samplers somewhere and reaches them one by one.
The `supervisor` notices one that is lost, and puts another in its place. Each schedule (`lockstep`,
`asynchronous`) decides when they are asked; it is the pool that the learner sees (`pool`). `session` is
the sampler's side of the talk, `wire` the format of a message, `child` a process of our own,
`shared_memory` what such a process shares with the learner, `engines.exchange` the connection between
learner and remote actors.
"""
