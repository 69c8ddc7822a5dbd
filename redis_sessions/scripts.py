"""The Lua scripts. Each is about one conversation, whose keys share a slot, or reads one page of a scan.

They use nothing newer than Redis 6.2. Every one may be sent twice: when the reply to the first was lost, the second finds
its own work and answers as the first did, except where its comment says otherwise.
"""

from __future__ import annotations

from typing import Final

from redis_sessions.commands import Script

# As redis.pcall, for commands that read, but only a value of the wrong type is given back as an error: a user who is not
# granted the command must not be told that there is no such value.
_PEEK: Final = """
local function peek(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and not string.find(tostring(reply.err), 'WRONGTYPE', 1, true) then
    return redis.call(...)
  end
  return reply
end
"""

# KEYS lease, id; ARGV token, lease TTL, grace. -> {1, id or nil} or {0, holder, remaining ms}
# A lease without a TTL (somebody's PERSIST) gets one, so that it can't shut a conversation for good.
# A value too long to be an ID is cut one byte past the longest, one of the wrong type is given as empty: neither is valid.
ACQUIRE: Final = Script(
    _PEEK
    + """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  local ttl = redis.call('PTTL', KEYS[1])
  if ttl == -1 then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    ttl = tonumber(ARGV[2])
  end
  local remaining = ttl - tonumber(ARGV[3])
  if remaining > 0 then
    return {0, holder, remaining}
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local id = peek('GET', KEYS[2])
if type(id) == 'table' then
  id = ''
elseif id then
  id = string.sub(id, 1, 257)
end
return {1, id}
"""
)

# KEYS lease; ARGV token, lease TTL. -> 1 if it is ours, lapsed but untaken included
RENEW: Final = Script(
    _PEEK
    + """
if peek('GET', KEYS[1]) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
"""
)

# KEYS lease, id; ARGV token, session ID, max age. -> 1 saved, 0 lost
# The second look at the ID is for a save that is sent again: the first one has given the lease back already.
SAVE: Final = Script(
    _PEEK
    + """
if peek('GET', KEYS[1]) == ARGV[1] then
  redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
  redis.call('DEL', KEYS[1])
  return 1
end
if peek('GET', KEYS[2]) == ARGV[2] then
  return 1
end
return 0
"""
)

# KEYS lease, id; ARGV token, refused session ID, lease TTL. -> 1 if the lease is ours, 0 taken
REJECT: Final = Script(
    _PEEK
    + """
if peek('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
if peek('GET', KEYS[2]) == ARGV[2] then
  redis.call('DEL', KEYS[2])
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""
)

# KEYS key; ARGV value. -> 1 if this call deleted it; sent again it answers 0 although the first has
DELETE_IF: Final = Script(
    _PEEK
    + """
if peek('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
"""
)

# ARGV cursor, pattern, count. -> {next cursor, now ms, key, PTTL, value or nil, ...}
# GETRANGE keeps a huge value on the server; nil stands for one of the wrong type.
PAGE: Final = Script(
    _PEEK
    + """
local time = redis.call('TIME')
local scan = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3])
local out = {scan[1], time[1] * 1000 + math.floor(time[2] / 1000)}
local n = 2
for _, key in ipairs(scan[2]) do
  local value = peek('GETRANGE', key, 0, 256)
  if type(value) == 'table' then
    value = false
  end
  out[n + 1] = key
  out[n + 2] = redis.call('PTTL', key)
  out[n + 3] = value
  n = n + 3
end
return out
"""
)
