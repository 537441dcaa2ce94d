-- Shared by all scripts. KEYS[1] is the clock, and every other key begins as it does.
--
--   <prefix>clock        the last position given out, "<ms>-<seq>"; only attach makes it
--   <prefix>epoch        hash: which Redis this is, and where its history cannot vouch for itself
--   <prefix>workers      sorted set: workers that are there, by when they last asked for a proof
--   <prefix>rules        the nodes' history rules as JSON, for those who publish without a node
--   <prefix>publish      SHA-1 of the script that they call
--   <prefix>m:<channel>  "<last> <bytes> <floor> <trimmed> <ended>" of a channel
--   <prefix>s:<channel>  stream: a channel's events, each under its position
--   <prefix>d:<token>    position of a publish that carried an id
--   <prefix>w:<worker>   hash: a worker's latest calls and their results, for one that asks again
--   <prefix>u:<channel>  hash: "<opened> <over>" of each stream of the user whose channel that is
--   <prefix>r:<bucket>   "<tokens> <ms>" of a publisher or a channel whose rate is limited
--   <prefix>revoked      hash: "<made> <until>" of each token or user that is revoked
--   <prefix>revoked-until  sorted set: those of them that need not be remembered for ever
--   <prefix>t:<id>       hash: the record of a token stream, and who makes it
--   <prefix>o:<channel>  id of the token stream that has a channel
--   <prefix>streams      sorted set: token streams that have not ended, by when their leases run out
--
-- Nothing is written before the clock is, and that one write Redis refuses when it takes none (out
-- of memory, read-only, ...). So a call that is refused has changed nothing.

local prefix = string.sub(KEYS[1], 1, -6)

-- Of Redis itself; given by tests alone.
local function time(given)
  if given > 0 then return given end
  local now = redis.call('TIME')
  return now[1] * 1000 + math.floor(now[2] / 1000)
end

-- Numbers up to ten times MOST are written in full by themselves, without the price of a format.
local MOST = 9999999999999

local function format(ms, seq)
  return ms .. '-' .. seq
end

local function parse(position)
  local dash = string.find(position, '-', 1, true)
  return tonumber(string.sub(position, 1, dash - 1)), tonumber(string.sub(position, dash + 1))
end

local function is_later(ms, seq, other_ms, other_seq)
  return ms > other_ms or (ms == other_ms and seq > other_seq)
end

-- Whether Redis refuses a write for now, since it has no room or may not. All else is an error.
local function is_full(err)
  return string.find(err, 'OOM', 1, true) or string.find(err, 'MISCONF', 1, true)
    or string.find(err, 'NOREPLICAS', 1, true)
end
