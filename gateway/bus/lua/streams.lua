-- Token streams: their records, and the leases of the workers that make them. ARGV: what is wanted,
-- time, the worker that asks, ms that a lease lasts, ms that a record is kept without being renewed,
-- and what the function of that name below takes.
--
-- Of a stream one worker is the owner, who makes it, or one deals with its end after its lease ran
-- out; both until the lease runs out, and where neither is there it was released. Whoever asks again,
-- as its link was lost, is answered the same.

local leases = prefix .. 'streams'
local now, worker = time(tonumber(ARGV[2])), ARGV[3]
local lasts, kept = tonumber(ARGV[4]), tonumber(ARGV[5])

local function record_of(id) return prefix .. 't:' .. id end
local function channel(name) return prefix .. 'o:' .. name end

local function lease(id, ms)
  redis.call('ZADD', leases, string.format('%.0f', now + ms), id)
end

local function expire(id, ms)
  local key = record_of(id)
  local names = redis.call('HMGET', key, 'channel', 'raw')
  redis.call('PEXPIRE', key, ms)
  for _, name in ipairs(names) do
    if name then redis.call('PEXPIRE', channel(name), ms) end
  end
end

-- The owner and who deals with it; nothing where there is no such stream, it has ended, or somebody
-- else's key is in its place. Whether there is no record stands behind that.
local function state(id)
  local found = redis.pcall('HMGET', record_of(id), 'record', 'over', 'owner', 'dealer', 'begun')
  if found.err or not found[1] or found[2] then return nil, not found.err and not found[1] end
  return {record = found[1], owner = found[3], dealer = found[4], begun = found[5]}
end

local function is_due(id)
  local over = redis.call('ZSCORE', leases, id)
  return not over or tonumber(over) <= now
end

local function hold(id)
  lease(id, lasts)
  redis.call('HSET', record_of(id), 'owner', worker)
  redis.call('HDEL', record_of(id), 'dealer')
end

local wanted = {}

-- 1, or 0 where another stream has one of its channels, or its id.
function wanted.open(id, record, name, raw, idempotent, request)
  for _, each in ipairs({name, raw}) do
    local other = redis.call('GET', channel(each))
    if other and other ~= id then return 0 end
  end
  local key = record_of(id)
  if redis.call('HGET', key, 'record') then
    local found = state(id)
    return found and found.owner == worker and 1 or 0
  end
  lease(id, lasts)
  redis.call('SET', channel(name), id)
  redis.call('SET', channel(raw), id)
  redis.call('HSET', key, 'record', record, 'channel', name, 'raw', raw, 'owner', worker)
  if idempotent == '1' then redis.call('HSET', key, 'idempotent', 1, 'request', request) end
  expire(id, kept)
  return 1
end

-- Of each stream 1 if its lease is this worker's and renewed, -1 if there is no record of it, else 0.
-- With touch '1' the records are kept for longer as well. A Redis that takes no writes says so also
-- where there is no stream.
function wanted.renew(touch, ...)
  redis.call('ZADD', leases, 'XX', 0, '')
  local answers = {}
  for i, id in ipairs({...}) do
    local found, is_unknown = state(id)
    local is_own = found
      and (found.owner == worker or not found.owner and found.dealer == worker)
    if is_own then
      if found.owner then lease(id, lasts) else hold(id) end
      if touch == '1' then expire(id, kept) end
    end
    answers[i] = is_own and 1 or is_unknown and -1 or 0
  end
  return answers
end

-- 1 if an event of it may be published now, which may be for the first time.
function wanted.begin(id)
  local found = state(id)
  if not found or found.owner ~= worker then return 0 end
  if found.begun and found.begun ~= worker and redis.call('HGET', record_of(id), 'idempotent') then
    return 0
  end
  redis.call('HSET', record_of(id), 'begun', worker)
  redis.call('HDEL', record_of(id), 'request')
  return 1
end

function wanted.release(id, ms)
  local found = state(id)
  if found and found.owner == worker then
    lease(id, tonumber(ms))
    redis.call('HDEL', record_of(id), 'owner')
    expire(id, math.max(kept, 2 * tonumber(ms)))
  end
  return 1
end

-- The record, and nothing where somebody else makes the stream or deals with it.
function wanted.claim(id)
  local found = state(id)
  if not found then return nil end
  local other = found.owner or found.dealer
  if other and other ~= worker and not is_due(id) then return nil end
  hold(id)
  expire(id, kept)
  return found.record
end

-- The record and the request, and nothing where that is not to be made again, as when it has been
-- already.
function wanted.restart(id)
  local found = state(id)
  if not found then return nil end
  local is_own = found.owner == worker
  if found.begun and not (is_own and found.begun == worker) then return nil end
  if not is_own and found.dealer ~= worker and not is_due(id) then return nil end
  local request = redis.call('HGET', record_of(id), 'request')
  if not request then return nil end
  redis.call('HSET', record_of(id), 'begun', worker)
  hold(id)
  expire(id, kept)
  return {found.record, request}
end

-- Its record is kept for so long from the first time on.
function wanted.finish(id, ms)
  redis.call('ZREM', leases, id)
  if state(id) then
    local key = record_of(id)
    redis.call('HSET', key, 'over', 1)
    redis.call('HDEL', key, 'owner', 'dealer', 'request')
    expire(id, tonumber(ms))
  end
  return 1
end

-- It was opened by this worker, and nobody has been told.
function wanted.forget(id)
  local found = state(id)
  if found and found.owner == worker then
    local key = record_of(id)
    for _, name in ipairs(redis.call('HMGET', key, 'channel', 'raw')) do
      if name then redis.call('UNLINK', channel(name)) end
    end
    redis.call('UNLINK', key)
    redis.call('ZREM', leases, id)
  end
  return 1
end

-- Streams whose leases have run out, which this worker deals with from now on. What is pushed is
-- released first in the name of the worker that has died, for so many ms: whoever pushes comes back
-- at another one.
function wanted.overdue(most, patience)
  local given = {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, most)) do
    local found = state(id)
    if found and found.owner and cjson.decode(found.record).format == 'push' then
      lease(id, tonumber(patience))
      redis.call('HDEL', record_of(id), 'owner')
    elseif found then
      lease(id, lasts)
      redis.call('HSET', record_of(id), 'dealer', worker)
      redis.call('HDEL', record_of(id), 'owner')
      given[#given + 1] = id
    else
      redis.call('ZREM', leases, id)
    end
  end
  return given
end

return wanted[ARGV[1]](unpack(ARGV, 6))
