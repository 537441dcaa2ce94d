-- Redis has evicted keys, ARGV[1] since its start: what history does not show may be gone.
-- ARGV[2]: time. Returns the position before which that holds.

local clock = redis.call('GET', KEYS[1])
if not clock then return redis.error_reply('NOCLOCK There is no clock: attach first.') end
local ms, seq = parse(clock)
local now = time(tonumber(ARGV[2]))
if now > ms then ms, seq = now, 0 end
local reply = redis.pcall('SET', KEYS[1], format(ms, seq))
if reply.err then
  if is_full(reply.err) then return clock end  -- and nothing is published meanwhile
  return reply
end
clock = format(ms, seq)
local key = prefix .. 'epoch'
if tonumber(ARGV[1]) > tonumber(redis.call('HGET', key, 'evicted') or '0') then
  redis.call('HSET', key, 'evicted', ARGV[1], 'lossy', clock)
end
return redis.call('HGET', key, 'lossy') or clock
