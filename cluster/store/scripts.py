"""The scripts in Lua that a run's steps in the store are made of. Each is executed as a whole.

All of them get the same keys, in the order of `KEYS`, and answer with a list whose first entry says
what happened. `gone`: the store does not have the run, or not all of it, because it came back empty or
has evicted keys. `ended`, and the version of its weights: the run has ended, so there is nothing to do.

Nothing large passes through them: a script copies each of its arguments several times, which takes the
server 25 ms for 7 MB, while a plain SET takes it over as it is. So fragments and weights are set beside,
under keys that nobody knows yet, and a script makes them known.

| key             | type       | holds                                                               |
|-----------------|------------|---------------------------------------------------------------------|
| record          | string     | JSON: the settings of the run, and how environments are spread      |
| weights         | string     | the newest weights, a message of `cluster.wire`                     |
| counters        | hash       | version, bounds, numbers of samplers, and what `Status` counts      |
| stream          | stream     | names of fragments; its group `trainers` knows who has which        |
| fragment:NAME   | string     | a fragment, a message of `cluster.wire`; NAME is SAMPLER:NUMBER     |
| staged:TRAINER  | string     | weights that are about to be published                              |
| sizes           | hash       | bytes of each fragment in the stream                                |
| sequences       | hash       | each sampler's last number                                          |
| trainers        | hash       | NAME/learned, NAME/updates, NAME/at, NAME/wait, NAME/published, .../token |
| alive:trainers  | sorted set | when each trainer was last heard, by the server's clock             |
| alive:samplers  | sorted set | the same of samplers                                                |
| scores          | list       | what followers have scored, as JSON, until the first trainer takes it |
| ended           | string     | there once the run has ended                                        |
"""

from __future__ import annotations

KEYS = (
    "record", "weights", "counters", "stream", "sizes", "sequences", "trainers", "alive:trainers",
    "alive:samplers", "scores", "ended",
)  # fmt: skip
GROUP = "trainers"
SCORES = 100  # that are kept until they are taken
ALIVE_S = 10  # how long after it was last heard somebody counts as alive
DAY_S, HOUR_S = (
    86_400,
    3_600,
)  # how long a run is kept after the last publication or fragment; its end

_PRELUDE = f"""
local record, weights, counters, stream, sizes, sequences, trainers, alive_trainers, alive_samplers,
  scores, ended = unpack(KEYS)
local GROUP, ALIVE = '{GROUP}', {ALIVE_S}
local function add(name, n) return redis.call('HINCRBY', counters, name, n) end
local function number(name) return tonumber(redis.call('HGET', counters, name) or 0) end
local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1e6
end
local function keep()
  local seconds = redis.call('EXISTS', ended) == 1 and {HOUR_S} or {DAY_S}
  for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, seconds) end
end
local prefix = string.sub(record, 1, -#'record' - 1)
local function fragment(entry) return prefix .. 'fragment:' .. entry[2][2] end
local function is_of(trainer, id)
  return #redis.call('XPENDING', stream, GROUP, id, id, 1, trainer) > 0
end
local function remove(id)
  add('bytes', 0 - tonumber(redis.call('HGET', sizes, id) or 0))  -- -0 is no number to Redis 7
  redis.call('HDEL', sizes, id)
  for _, entry in ipairs(redis.call('XRANGE', stream, id, id)) do
    redis.call('UNLINK', fragment(entry))
  end
  redis.call('XACK', stream, GROUP, id)
  redis.call('XDEL', stream, id)
end
"""
_THERE = "if redis.call('EXISTS', record, weights, counters, stream) < 4 then return {'gone'} end\n"

# record, weights, version, fragments, bytes, number of the first sampler, environment steps so far, token,
# ranges of environments, whether a run of older weights is made anew also while its trainers live
FOUND = (
    _PRELUDE
    + """
if redis.call('EXISTS', record, weights, counters, stream) == 4 and redis.call('EXISTS', ended) == 0 then
  -- its answer was lost
  if redis.call('HGET', counters, 'founder') == ARGV[8] then return {'founded', number('version')} end
  -- one of older weights is from before they were published: the store came back with an older state
  local lives = redis.call('ZCOUNT', alive_trainers, now() - ALIVE, '+inf') > 0
  if number('version') >= tonumber(ARGV[3]) or (lives and ARGV[10] == '0') then
    return {'there', number('version')}
  end
end
-- no number of a sampler is given twice
local ranges = tonumber(ARGV[9])
local first = math.max(tonumber(ARGV[6]), ranges * math.ceil(number('samplers') / ranges))
for _, entry in ipairs(redis.call('XRANGE', stream, '-', '+')) do
  redis.call('UNLINK', fragment(entry))
end
redis.call('DEL', unpack(KEYS))
redis.call('SET', record, ARGV[1])
redis.call('SET', weights, ARGV[2])
redis.call('HSET', counters, 'version', ARGV[3], 'most_fragments', ARGV[4], 'most_bytes', ARGV[5],
  'first_sampler', first, 'samplers', first, 'steps', ARGV[7], 'founder', ARGV[8])
redis.call('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM')
keep()
return {'founded', number('version')}
"""
)

# record, which start of the run it is
OPENED = (
    _PRELUDE
    + _THERE
    + """
redis.call('SET', record, ARGV[1])
redis.call('HSET', counters, 'opened', ARGV[2])
keep()
return {'done'}
"""
)

# Whether a fragment of so many bytes has room: by the fragments that wait for a trainer, and by the
# bytes of all. Where none waits there is room for one: it may be too large for the bound, or trainers
# may fill it who have too few to learn from.
_ROOM = """
local function has_room(size)
  local waiting = redis.call('XLEN', stream) - redis.call('XPENDING', stream, GROUP)[1]
  if waiting <= 0 then return true end
  return waiting < number('most_fragments') and number('bytes') + size <= number('most_bytes')
end
"""

# size
ROOM = (
    _PRELUDE
    + _THERE
    + _ROOM
    + """
if redis.call('EXISTS', ended) == 1 then return {'ended', number('version')} end
return {has_room(tonumber(ARGV[1])) and 'room' or 'full', number('version')}
"""
)

# sampler, its number of this fragment, which is set already
APPEND = (
    _PRELUDE
    + _THERE
    + _ROOM
    + """
local sampler, sequence, name = ARGV[1], tonumber(ARGV[2]), ARGV[1] .. ':' .. ARGV[2]
local size = redis.call('STRLEN', prefix .. 'fragment:' .. name)
-- a sampler from before the store was lost: it is to join again
if tonumber(sampler) < number('first_sampler') then return {'gone'} end
if redis.call('EXISTS', ended) == 1 then return {'ended', number('version')} end
local last = tonumber(redis.call('HGET', sequences, sampler) or -1)
if sequence > last then  -- otherwise its answer was lost, and it is sent again
  if not has_room(size) then return {'full'} end
  local id = redis.call('XADD', stream, '*', 'name', name)
  redis.call('HSET', sizes, id, size)
  redis.call('HSET', sequences, sampler, sequence)
  add('bytes', size)
  add('appended', 1)
  add('gaps', sequence - last - 1)
  keep()
end
return {'appended', number('version')}
"""
)

# trainer, token, the version that the staged weights are made from, environment steps, ids
PUBLISH = (
    _PRELUDE
    + _THERE
    + """
local trainer, token, expected, steps = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if redis.call('HGET', trainers, trainer .. '/token') == token then  -- its answer was lost
  return {'done', tonumber(redis.call('HGET', trainers, trainer .. '/published'))}
end
local version = number('version')
if version ~= expected then return {'conflict', version} end
local lost = {'lost', version}
for i = 5, #ARGV do
  if not is_of(trainer, ARGV[i]) then lost[#lost + 1] = ARGV[i] end
end
if #lost > 2 then return lost end
for i = 5, #ARGV do remove(ARGV[i]) end
redis.call('RENAME', prefix .. 'staged:' .. trainer, weights)
version = add('version', 1)
add('learned', #ARGV - 4)
add('steps', steps)
redis.call('HINCRBY', trainers, trainer .. '/learned', #ARGV - 4)
redis.call('HINCRBY', trainers, trainer .. '/updates', 1)
redis.call('HSET', trainers, trainer .. '/published', version, trainer .. '/at', version,
  trainer .. '/token', token)
keep()
return {'done', version}
"""
)

# trainer, counter, environment steps, ids
DROP = (
    _PRELUDE
    + _THERE
    + """
local dropped = 0
for i = 4, #ARGV do
  if is_of(ARGV[1], ARGV[i]) then
    remove(ARGV[i])
    dropped = dropped + 1
  end
end
add(ARGV[2], dropped)
if dropped > 0 then add('steps', tonumber(ARGV[3])) end
return {'done', dropped}
"""
)

# trainer
CLAIM = (
    _PRELUDE
    + _THERE
    + """
local trainer, limit = ARGV[1], now() - ALIVE
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, GROUP)) do
  local other, idle = consumer[2], consumer[6] / 1000
  local heard = tonumber(redis.call('ZSCORE', alive_trainers, other) or now() - idle)
  if other ~= trainer and heard < limit then
    for _, entry in ipairs(redis.call('XPENDING', stream, GROUP, '-', '+', 10000, other)) do
      redis.call('XCLAIM', stream, GROUP, trainer, 0, entry[1], 'JUSTID')
    end
    if #redis.call('XPENDING', stream, GROUP, '-', '+', 1, other) == 0 then
      redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, other)
      redis.call('ZREM', alive_trainers, other)
    end
  end
end
local mine = {'mine'}
for _, entry in ipairs(redis.call('XPENDING', stream, GROUP, '-', '+', 10000, trainer)) do
  mine[#mine + 1] = entry[1]
end
return mine
"""
)

# who is alive: trainer or sampler; the name; the version that a trainer works from; the share of its
# time that it has waited
BEAT = (
    _PRELUDE
    + _THERE
    + """
local alive = ARGV[1] == 'trainer' and alive_trainers or alive_samplers
local time = now()
local heard = tonumber(redis.call('HGET', counters, 'heard') or time)
if time - heard > ALIVE / 2 then  -- nobody was heard: the server was stopped, and nobody is dead
  for _, key in ipairs({alive_trainers, alive_samplers}) do
    for _, name in ipairs(redis.call('ZRANGEBYSCORE', key, 1, '+inf')) do
      redis.call('ZADD', key, time, name)
    end
  end
end
redis.call('HSET', counters, 'heard', time)
redis.call('ZADD', alive, time, ARGV[2])
redis.call('ZREMRANGEBYSCORE', alive_samplers, '-inf', time - 6 * ALIVE)
if ARGV[1] == 'trainer' then
  redis.call('HSET', trainers, ARGV[2] .. '/at', ARGV[3], ARGV[2] .. '/wait', ARGV[4])
end
keep()
return {'there', redis.call('EXISTS', ended), number('version'),
  redis.call('ZCOUNT', alive_samplers, time - ALIVE, '+inf'), number('samplers'), number('gaps')}
"""
)

# who leaves: trainer or sampler; the name
LEAVE = (
    _PRELUDE
    + _THERE
    + """
redis.call('ZADD', ARGV[1] == 'trainer' and alive_trainers or alive_samplers, 0, ARGV[2])
return {'done'}
"""
)

# a new sampler; into how many ranges the environments are spread: it gets one that has the fewest
JOIN = (
    _PRELUDE
    + _THERE
    + """
if redis.call('EXISTS', ended) == 1 then return {'ended', number('version')} end
local ranges, alive, range = tonumber(ARGV[1]), {}, 0
for _, name in ipairs(redis.call('ZRANGEBYSCORE', alive_samplers, now() - ALIVE, '+inf')) do
  local other = tonumber(name) % ranges
  alive[other] = (alive[other] or 0) + 1
end
for other = 1, ranges - 1 do
  if (alive[other] or 0) < (alive[range] or 0) then range = other end
end
local sampler = number('first_sampler') + range + ranges * (add('joined:' .. range, 1) - 1)
redis.call('HSET', counters, 'samplers', math.max(number('samplers'), sampler + 1))
redis.call('ZADD', alive_samplers, now(), sampler)
keep()
return {'there', sampler}
"""
)

# what a follower has scored
SCORE = (
    _PRELUDE
    + _THERE
    + f"""
if redis.call('EXISTS', ended) == 1 then return {{'ended', number('version')}} end
redis.call('RPUSH', scores, ARGV[1])
redis.call('LTRIM', scores, -{SCORES}, -1)
keep()
return {{'done'}}
"""
)

TAKE_SCORES = (
    _PRELUDE
    + _THERE
    + """
local taken = redis.call('LRANGE', scores, 0, -1)
redis.call('DEL', scores)
return {'done', unpack(taken)}
"""
)

END = (
    _PRELUDE
    + _THERE
    + f"local HOUR = {HOUR_S}"
    + """
redis.call('SET', ended, '1')
keep()
for _, entry in ipairs(redis.call('XRANGE', stream, '-', '+')) do
  redis.call('EXPIRE', fragment(entry), HOUR)
end
return {'done'}
"""
)

STATUS = (
    _PRELUDE
    + _THERE
    + """
local limit = now() - ALIVE
return {'there', redis.call('XLEN', stream), redis.call('HGETALL', counters),
  redis.call('HGETALL', trainers), redis.call('ZRANGEBYSCORE', alive_trainers, limit, '+inf'),
  redis.call('ZCOUNT', alive_samplers, limit, '+inf')}
"""
)
