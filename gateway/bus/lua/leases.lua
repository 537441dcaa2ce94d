-- Leases of users' streams. ARGV: time, ms that a lease lasts unless it is renewed, the most streams
-- of a user, 1 if one more is refused and 0 if the oldest end for it, the worker that asks; then for
-- each stream its user's channel, its client id, and when it was opened, or 0 for a new one.
--
-- Returns for each when it was opened, 0 if it is refused and -1 if the key is none of ours; and the
-- ids of those that are to end. A lease is void once it is over, and when its worker is no longer
-- there: an id begins with that.

local now = time(tonumber(ARGV[1]))
local lasts, most = tonumber(ARGV[2]), tonumber(ARGV[3])
local refuses = ARGV[4] == '1'
local present = {[ARGV[5]] = true}
if ARGV[8] == '0' then redis.call('ZADD', prefix .. 'workers', 'NX', now, ARGV[5]) end

local function is_present(worker)
  if present[worker] == nil then
    present[worker] = redis.call('ZSCORE', prefix .. 'workers', worker) and true or false
  end
  return present[worker]
end

local function is_older(one, other)
  if one.opened ~= other.opened then return one.opened < other.opened end
  return one.id < other.id
end

local results = {}
for at = 6, #ARGV, 3 do
  local key = prefix .. 'u:' .. ARGV[at]
  local own = {id = ARGV[at + 1], opened = tonumber(ARGV[at + 2])}
  local held = redis.pcall('HGETALL', key)
  local leases, newest = {own}, 0
  for i = 1, #held, 2 do
    local id = held[i]
    local opened, over = string.match(held[i + 1], '^(%d+) (%d+)$')
    opened = tonumber(opened)
    if id == own.id then
      own.opened = opened or own.opened
    elseif not opened or tonumber(over) < now or not is_present(string.match(id, '^[^.]*')) then
      redis.call('HDEL', key, id)
    else
      leases[#leases + 1] = {id = id, opened = opened}
      newest = math.max(newest, opened)
    end
  end
  if held.err then
    results[#results + 1] = {-1}
  elseif own.opened == 0 and refuses and #leases > most then
    results[#results + 1] = {0}
  else
    if own.opened == 0 then own.opened = math.max(now, newest + 1) end
    local result = {own.opened}
    redis.call('HSET', key, own.id, string.format('%.0f %.0f', own.opened, now + lasts))
    if not refuses and #leases > most then
      table.sort(leases, is_older)
      for i = 1, #leases - most do
        redis.call('HDEL', key, leases[i].id)
        result[#result + 1] = leases[i].id
      end
    end
    redis.call('PEXPIRE', key, lasts)
    results[#results + 1] = result
  end
end
return results
