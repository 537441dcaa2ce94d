-- H: a position that no event published from now on is before, and none published so far is after.
-- ARGV: worker to prove it to, number of the proof, time, ms for which that shows the worker to be
-- there. It comes back as a reply and, behind all that was published before, as a message to the
-- worker.

local clock = redis.call('GET', KEYS[1])
if not clock then return redis.error_reply('NOCLOCK There is no clock: attach first.') end
local ms, seq = parse(clock)
local now = time(tonumber(ARGV[3]))
if now > ms then
  local reply = redis.pcall('SET', KEYS[1], format(now, 0))
  if not reply.err then
    clock = format(now, 0)
  elseif not is_full(reply.err) then
    return reply
  end  -- else what was given out last will do: while nothing can be written, nothing is published
end
redis.pcall('ZADD', prefix .. 'workers', now, ARGV[1])
redis.pcall('ZREMRANGEBYSCORE', prefix .. 'workers', '-inf', '(' .. (now - ARGV[4]))
redis.pcall('PEXPIRE', prefix .. 'workers', ARGV[4])
local epoch = redis.call('HMGET', prefix .. 'epoch', 'run', 'restored', 'lifted', 'broken', 'lossy')
if not epoch[1] then return redis.error_reply('NOCLOCK There is no epoch: attach first.') end
for i = 1, 5 do epoch[i] = epoch[i] or '-' end
local told = clock .. ' ' .. ARGV[2] .. ' ' .. table.concat(epoch, ' ')
redis.call('PUBLISH', prefix .. 'p:' .. ARGV[1], told)
return clock
