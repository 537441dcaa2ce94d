-- Publish events: a position each, history, and a message to every channel; all or nothing of each.
--
-- ARGV[1] from a node: msgpack [1, time, worker, call, dedupe ms, events], each event
-- [token, rest of the head and body, ended, channel, events, bytes, ms, channel, ...] with the
-- history rule of each channel. Returns for each event: "<position>", "=<position>" for a repeat,
-- "E" where a channel has ended, "X<error>" where Redis holds something else in the place.
--
-- ARGV[1] from an application: one event as JSON, as POST /publish takes it (channel or channels,
-- data, event, retry, key, id, end; "v": 1 may name the format), but with data as a string alone: what
-- Lua would make of other JSON is not what was written. Returns its position, or an error that says
-- what is wrong.
--
-- The message and the entry of an event: "1 <position> <previous> <bytes> <ended> <channels> <key>",
-- a line break, and its SSE block without id. Behind <ended> may stand what a node says of a trace. <previous> is the channel's event before it; with ~ it
-- is where the channel is known to have been empty since.

local WINDOW = 512               -- calls of a worker that are remembered
local WINDOW_MS = 600000
local MOST_FORGOTTEN = 64        -- by bytes, with one event: where a bound was lowered
local TRIMS = 4                  -- times by age within a channel's time to live

local clock = redis.call('GET', KEYS[1])
if not clock then return redis.error_reply('NOCLOCK There is no clock: attach first.') end
local ms, seq = parse(clock)
local now
local metas = {}
local touched = {}

local function restarted(channel, rule, previous)
  return {last = previous, bytes = 0, floor = 0, trimmed = now, ended = '0', channel = channel,
    rule = rule}
end

-- What is known of a channel; one that has been silent for its whole time begins anew, and so does
-- one whose record makes no sense. Nothing and why where something else is in the record's place.
local function load(channel, rule)
  local meta = metas[channel]
  if meta then return meta end
  local text = redis.pcall('GET', prefix .. 'm:' .. channel)
  if type(text) == 'table' then return nil, text.err end
  if text then
    local last, last_ms, bytes, floor, trimmed, ended =
      string.match(text, '^((%d+)%-%d+) (%d+) (%d+) (%d+) (%d)$')
    if not last then
      meta = restarted(channel, rule, format(ms, seq))
      meta.fresh = true
    elseif last_ms + rule.ms >= now then
      meta = {last = last, bytes = bytes + 0, floor = floor + 0, trimmed = trimmed + 0,
        ended = ended, channel = channel, rule = rule}
    end
  end
  if not meta then
    meta = restarted(channel, rule, '~' .. format(math.max(0, now - rule.ms), 0))
    meta.fresh = true
  end
  metas[channel] = meta
  return meta
end

-- Forget the oldest events until a channel's history is within its bytes.
local function trim_bytes(key, meta)
  for _ = 1, MOST_FORGOTTEN do
    if meta.bytes - meta.floor <= meta.rule.bytes then return end
    local oldest = redis.call('XRANGE', key, '-', '+', 'COUNT', 2)
    if #oldest == 0 then
      meta.floor = meta.bytes
      return
    end
    meta.floor = tonumber(string.match(oldest[1][2][2], '^%S+ %S+ %S+ (%d+) ')) or meta.bytes
    if meta.bytes - meta.floor > meta.rule.bytes then
      redis.call('XDEL', key, oldest[1][1])
      meta.floor = oldest[2] and
        tonumber(string.match(oldest[2][2][2], '^%S+ %S+ %S+ (%d+) ')) or meta.bytes
    end
  end
end

local function take(event)
  local token, rest, ended = event.token, event.rest, event.ended
  if token ~= '' then
    local known = redis.pcall('GET', prefix .. 'd:' .. token)
    if type(known) == 'table' then return 'X' .. known.err end
    local known_ms = known and string.match(known, '^(%d+)%-%d+$')
    if known_ms and known_ms + event.dedupe_ms >= now then return '=' .. known end
  end
  for _, target in ipairs(event.targets) do
    local meta, err = load(target.channel, target)
    if not meta then return 'X' .. err end
    if meta.ended == '1' then return 'E' end
  end
  local added = {}
  for try = 1, 3 do
    local before_ms, before_seq = ms, seq
    if now > ms then ms, seq = now, 0 else seq = seq + 1 end
    local position = format(ms, seq)
    local failed
    for i, target in ipairs(event.targets) do
      local meta = metas[target.channel]
      local key = prefix .. 's:' .. target.channel
      if meta.fresh then
        local left = redis.pcall('XREVRANGE', key, '+', '-', 'COUNT', 1)
        if not left.err and left[1] and parse(left[1][1]) + meta.rule.ms >= now then
          meta.last = format(before_ms, before_seq)  -- the record alone is gone: who knows why
          touched[target.channel] = meta  -- whatever becomes of this event
        end
        if not left.err then redis.call('UNLINK', key) end
        meta.fresh = nil
      end
      added[i] = '1 ' .. position .. ' ' .. meta.last .. ' ' .. meta.bytes .. ' ' .. rest
      if target.events > 0 and target.bytes > 0 then
        local reply = redis.pcall('XADD', key, 'MAXLEN', '=', target.events, position, 'e', added[i])
        if reply.err then
          for undone = 1, i - 1 do
            redis.call('XDEL', prefix .. 's:' .. event.targets[undone].channel, position)
          end
          failed = {key = key, meta = meta, err = reply.err}
          break
        end
      end
    end
    if not failed then
      for i, target in ipairs(event.targets) do
        local meta = metas[target.channel]
        local key = prefix .. 's:' .. target.channel
        meta.last = position
        meta.bytes = meta.bytes + #added[i]
        meta.ended = ended
        meta.rule = target
        touched[target.channel] = meta
        if target.events > 0 and target.bytes > 0 then
          if meta.bytes - meta.floor > target.bytes then trim_bytes(key, meta) end
          if ms - meta.trimmed > target.ms / TRIMS then
            redis.call('XTRIM', key, 'MINID', '~', format(math.max(0, now - target.ms), 0))
            meta.trimmed = ms
          end
        end
        redis.call('PUBLISH', prefix .. 'c:' .. target.channel, added[i])
      end
      if token ~= '' then
        redis.call('SET', prefix .. 'd:' .. token, position, 'PXAT', ms + event.dedupe_ms + 1)
      end
      return position
    end
    -- Something later is there already: evicted clock, or forged. Go beyond it; what cannot be gone
    -- beyond is thrown away, and the channel begins anew.
    local top = redis.pcall('XREVRANGE', failed.key, '+', '-', 'COUNT', 1)
    if top.err or not top[1] then return 'X' .. failed.err end
    local top_ms, top_seq = parse(top[1][1])
    if top_ms < MOST and top_seq < MOST then
      if is_later(top_ms, top_seq, ms, seq) then ms, seq = top_ms, top_seq end
    else
      redis.call('UNLINK', failed.key)
      metas[failed.meta.channel] = restarted(failed.meta.channel, failed.meta.rule, position)
    end
  end
  return 'XThe history of a channel goes on changing.'
end

local function finish()
  redis.call('SET', KEYS[1], format(ms, seq))
  for channel, meta in pairs(touched) do
    local rule = meta.rule
    local until_ms = ms + rule.ms + 1
    if rule.events > 0 and rule.bytes > 0 then
      redis.call('PEXPIREAT', prefix .. 's:' .. channel, until_ms)
    end
    redis.call('SET', prefix .. 'm:' .. channel, meta.last .. ' ' .. meta.bytes .. ' '
      .. meta.floor .. ' ' .. meta.trimmed .. ' ' .. meta.ended, 'PXAT', until_ms)
  end
end

local function begin(given)
  now = time(given)
  redis.call('SET', KEYS[1], clock)
end

if string.find(ARGV[1], '^[\144-\159]') then  -- an array in msgpack, which is no text
  local request = cmsgpack.unpack(ARGV[1])
  if request[1] ~= 1 then return redis.error_reply('FORMAT This script takes format 1.') end
  local field, number = request[4] % WINDOW, string.format('%.0f', request[4])
  local remembered = prefix .. 'w:' .. request[3]
  local done = redis.call('HGET', remembered, field)
  if done then
    local of, results = string.match(done, '^(%S+) (.*)$')
    if of == number then return cjson.decode(results) end
  end
  begin(request[2])
  local results = {}
  for i, packed in ipairs(request[6]) do
    local event = {token = packed[1], rest = packed[2], ended = packed[3], targets = {},
      dedupe_ms = request[5]}
    for at = 4, #packed, 4 do
      event.targets[#event.targets + 1] =
        {channel = packed[at], events = packed[at + 1], bytes = packed[at + 2], ms = packed[at + 3]}
    end
    results[i] = take(event)
  end
  finish()
  redis.call('HSET', remembered, field, number .. ' ' .. cjson.encode(results))
  redis.call('PEXPIRE', remembered, WINDOW_MS)
  return results
end
