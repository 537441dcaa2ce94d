-- Keep a revocation. ARGV: time, the most that are kept, its kind and id as "<kind>:<id>", when it was
-- made, and until when it matters, or "-". Without the last three it only forgets what is over.
-- Returns how many that were, which are MOST_FORGOTTEN at the most; an error where there are too many.

local MOST_FORGOTTEN = 1000

local now = time(tonumber(ARGV[1]))
local revoked, ends = prefix .. 'revoked', prefix .. 'revoked-until'
local over = redis.call('ZRANGEBYSCORE', ends, '-inf', '(' .. now, 'LIMIT', 0, MOST_FORGOTTEN)
for _, field in ipairs(over) do
  redis.call('HDEL', revoked, field)
  redis.call('ZREM', ends, field)
end
local field = ARGV[3]
if field then
  if redis.call('HLEN', revoked) >= tonumber(ARGV[2])
    and not redis.call('HGET', revoked, field) then
    return redis.error_reply('FULL There are too many revocations.')
  end
  redis.call('HSET', revoked, field, ARGV[4] .. ' ' .. ARGV[5])
  if ARGV[5] == '-' then
    redis.call('ZREM', ends, field)
  else
    redis.call('ZADD', ends, ARGV[5], field)
  end
end
return #over
