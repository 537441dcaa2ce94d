-- A node has connected. ARGV: run id of this Redis; 1 if it starts with all that it ever confirmed;
-- the latest position that the node has seen, and the run id under which; rules as JSON; time; the
-- digest of the script that publishes.
--
-- Another run id, or no clock: a Redis that was restarted, replaced or emptied. Whatever the nodes
-- have seen beyond what it restored is lost. The clock is lifted beyond all that they may have
-- seen, so that no position is given out twice, and what lies between belongs to no history.

local LIFT_MS = 10000  -- more than the clocks of two machines differ

local run, complete, floor, seen_run = ARGV[1], ARGV[2] == '1', ARGV[3], ARGV[4]
local floor_ms, floor_seq = parse(floor)
local now = time(tonumber(ARGV[6]))
if floor_ms > MOST / 2 then floor_ms, floor_seq = 0, 0 end  -- nothing of ours
local key = prefix .. 'epoch'
local epoch = redis.call('HMGET', key, 'run', 'restored', 'lifted', 'broken')
local clock = redis.call('GET', KEYS[1])
if clock and (not string.find(clock, '^%d+%-%d+$') or parse(clock) > MOST / 2) then clock = nil end
local ms, seq = parse(clock or '0-0')

local function lift()
  if is_later(floor_ms, floor_seq, ms, seq) then ms, seq = floor_ms, floor_seq end
  if clock or floor_ms > 0 then ms, seq = math.max(ms, now) + LIFT_MS, 0 end
end

if not clock or epoch[1] ~= run then
  local lost = not (clock and epoch[1] and complete) or is_later(floor_ms, floor_seq, ms, seq)
  local restored = format(ms, seq)
  lift()
  if now > ms then ms, seq = now, 0 end
  local lifted = format(ms, seq)
  redis.call('SET', KEYS[1], lifted)
  redis.call('HSET', key, 'run', run, 'restored', restored, 'lifted', lifted, 'evicted', 0)
  if lost then redis.call('HSET', key, 'broken', lifted) end
else
  local restored_ms, restored_seq = parse(epoch[2])
  local lifted_ms, lifted_seq = parse(epoch[3])
  local broken_ms, broken_seq = parse(epoch[4] or '0-0')
  local lost = is_later(floor_ms, floor_seq, ms, seq)
  if seen_run ~= '' and seen_run ~= run and is_later(floor_ms, floor_seq, restored_ms, restored_seq) then
    -- Unless another node has made that known, for all that was seen before the clock was lifted.
    local is_known = not is_later(lifted_ms, lifted_seq, broken_ms, broken_seq)
    lost = lost or not is_known or is_later(floor_ms, floor_seq, lifted_ms, lifted_seq)
  end
  if lost then
    lift()
    if now > ms then ms, seq = now, 0 end
    redis.call('SET', KEYS[1], format(ms, seq))
    redis.call('HSET', key, 'broken', format(ms, seq))
  end
end
redis.pcall('SET', prefix .. 'rules', ARGV[5])  -- which a Redis without memory may refuse
redis.pcall('SET', prefix .. 'publish', ARGV[7])
local told = redis.call('HMGET', key, 'restored', 'lifted', 'broken', 'lossy')
for i = 1, 4 do told[i] = told[i] or '-' end
return {format(ms, seq), told[1], told[2], told[3], told[4]}
