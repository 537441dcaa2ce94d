-- Token buckets that workers share. ARGV: time; then for each its name, its rate in tokens a second,
-- and the tokens that the worker has spent of it since it told last. Returns for each what it holds,
-- perhaps less than nothing, but no less than a second's worth.

local now = time(tonumber(ARGV[1]))
local results = {}
for at = 2, #ARGV, 3 do
  local key = prefix .. 'r:' .. ARGV[at]
  local rate, spent = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local capacity = math.max(1, rate)
  local level = capacity
  local before, since = string.match(redis.call('GET', key) or '', '^(%S+) (%d+)$')
  before, since = tonumber(before), tonumber(since)
  if before and since then
    level = math.min(capacity, before + math.max(0, now - since) * rate / 1000)
  end
  level = math.max(-capacity, level - spent)
  if level < capacity then
    local full = math.ceil((capacity - level) / rate * 1000) + 1
    -- Since now, also where the clock was set back: else nothing came until it is there again.
    redis.call('SET', key, string.format('%.6f %.0f', level, now), 'PX', full)
  end
  results[#results + 1] = string.format('%.6f', level)
end
return results
