"""The Lua scripts. Each is about one conversation, whose keys share a slot, or about one page of a scan.

They use nothing newer than Redis 6.2. All may be sent twice: if the reply to the first sending was lost, the second finds
what the first has done and replies the same, unless its comment says otherwise.
"""

from __future__ import annotations

from typing import Final

from redis_sessions.keys import RECORD_FIELDS
from redis_sessions.operations.command import Script

# Same as redis.pcall, for commands that read, but only WRONGTYPE is returned as an error: to a user without the permission
# for the command it must not look as if there were no such value.
_PEEK: Final = """
local function peek(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err and not string.find(tostring(reply.err), 'WRONGTYPE', 1, true) then
    return redis.call(...)
  end
  return reply
end
"""

# Increments the keys from KEYS[first] on; returns how many of them failed, such as one that is not an integer. A failure
# must not leave the rest of a script undone.
_COUNT: Final = """
local function count(first)
  local failed = 0
  for i = first, #KEYS do
    local reply = redis.pcall('INCR', KEYS[i])
    if type(reply) == 'table' and reply.err then
      failed = failed + 1
    end
  end
  return failed
end
"""

# A number of a record, nil unless it can be read and incremented: another program may have written it.
_FIGURE: Final = """
local function figure(value)
  return value and #value < 15 and string.find(value, '^[1-9]%d*$') and tonumber(value) or nil
end
"""

# Deletes a record unless it is that of the session `id`; whether it is there then.
_RECORD: Final = """
local function is_record_of(key, id)
  local found = peek('HGET', key, 'id')
  if found == id then
    return true
  end
  if found ~= false then
    redis.call('DEL', key)
  end
  return false
end
"""

# KEYS lease, id, record; ARGV token, lease TTL, grace, 1 if the time is wanted, 1 if the record is wanted
# -> {1, id or nil, now ms or nil, value of each field or nil} or {0, holder, remaining ms}
# A lease without a TTL (after PERSIST by hand) gets one, so that it can't block a conversation forever.
# The first field is the session ID: a record of another session, or a key of another type, has no fields.
# A value too long to be an ID is cut one byte past the longest, one of the wrong type becomes empty: neither is valid.
# A holder is cut too, since it may be any value.
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
    return {0, string.sub(holder, 1, 257), remaining}
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local id, now = peek('GET', KEYS[2]), false
if type(id) == 'table' then
  id = ''
elseif id and #id > 257 then
  id = string.sub(id, 1, 257)
end
if ARGV[4] == '1' then
  local time = redis.call('TIME')
  now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
end
if id and ARGV[5] == '1' then
  local values = peek('HMGET', KEYS[3], FIELDS)
  if values[1] == id then
    for i = 1, #values do
      local value = values[i]
      if value and #value > 40000 then
        values[i] = string.sub(value, 1, 40000)
      end
    end
    return {1, id, now, unpack(values)}
  end
end
return {1, id, now}
""".replace("FIELDS", ", ".join(f"'{name}'" for name in RECORD_FIELDS))
)

# KEYS lease; ARGV token, lease TTL. -> 1 if it is ours, even if it has lapsed, as long as nobody else has taken it
RENEW: Final = Script(
    _PEEK
    + """
if peek('GET', KEYS[1]) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
"""
)

# KEYS lease, id, record, counter, ...
# ARGV token, session ID, max age, lease TTL to keep the lease or '', the ID whose session this one continues ('': none but
# its own, '-': it begins now), what to do with the failures ('keep', 'add' or 'reset'; '' writes no record), further fields
# of the record and their values, ..., whether it is sent again. -> {1 saved or 0 lost, number of counters that were not
# incremented}
# Sent again, it also looks at the ID: the first sending may have released the lease already, and has counted then. Sent once
# it must not, or a worker that comes late with the same ID that its successor resumed or saved would never learn that it was
# taken over. It writes then, too: WAIT is about the last write of its connection, and says nothing of replicas if there was
# none. `t` counts the saves that end a turn. What this turn did not report is not kept from the one before, but agent and
# place are.
SAVE: Final = Script(
    _PEEK
    + _COUNT
    + _FIGURE
    + """
local id, again = ARGV[2], ARGV[#ARGV]
if peek('GET', KEYS[1]) ~= ARGV[1] then
  if again == '1' and peek('GET', KEYS[2]) == id then
    redis.call('PEXPIRE', KEYS[2], ARGV[3])
    redis.call('PEXPIRE', KEYS[3], ARGV[3])
    return {1, 0}
  end
  return {0, #KEYS - 3}
end
local call, record = redis.call, KEYS[3]
if ARGV[6] ~= '' then
  local was = peek('HMGET', record, 'id', 's', 't', 'f', 'c', 'i')
  if not was[1] or ARGV[5] == '-' or was[1] ~= id and was[1] ~= ARGV[5] then
    if was.err or was[1] then
      call('DEL', record)
    end
    was = {}
  elseif was[4] or was[5] or was[6] then
    call('HDEL', record, 'f', 'c', 'i')
  end
  local time = call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local started = figure(was[2]) and was[2] or now  -- as it was: Redis takes a text faster than a number
  local turns = (figure(was[3]) or 0) + (ARGV[4] == '' and 1 or 0)
  call('HSET', record, 'id', id, 's', started, 'u', math.max(0, now - started), 't', turns, unpack(ARGV, 7, #ARGV - 1))
  if ARGV[6] ~= 'reset' then
    local failures = (figure(was[4]) or 0) + (ARGV[6] == 'add' and 1 or 0)
    if failures > 0 then
      call('HSET', record, 'f', failures)
    end
  end
  call('PEXPIRE', record, ARGV[3])
end
-- Last: what is refused before it, such as HSET, leaves the old ID, and the claim has shown that SET is not.
call('SET', KEYS[2], id, 'PX', ARGV[3])
local uncounted = count(4)
if ARGV[4] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
return {1, uncounted}
"""
)

# KEYS lease, id, record, counter, ...; ARGV token, refused session ID, lease TTL, whether it is sent again.
# -> {1 if the lease is ours or 0, number of counters that were not incremented}
# Sent again, it counts only if it finds the ID: otherwise the first sending has counted.
REJECT: Final = Script(
    _PEEK
    + _COUNT
    + """
if peek('GET', KEYS[1]) ~= ARGV[1] then
  return {0, #KEYS - 3}
end
local found = peek('GET', KEYS[2]) == ARGV[2]
if found then
  redis.call('DEL', KEYS[2], KEYS[3])
end
local uncounted = 0
if found or ARGV[4] ~= '1' then
  uncounted = count(4)
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {1, uncounted}
"""
)

# KEYS lease, id, record; ARGV token, session ID that failed, max age, whether it is sent again.
# -> {1 if the lease was ours or 0, 0}
# Counts an undecided failure and releases the lease. The ID and its TTL are untouched; the record gets the same TTL, as by
# RETIME, `u` with it. A number of failures that can't be read begins again.
FAIL: Final = Script(
    _PEEK
    + _RECORD
    + _FIGURE
    + """
local holder = peek('GET', KEYS[1])
if holder ~= ARGV[1] then
  return {ARGV[4] == '1' and not holder and 1 or 0, 0}
end
if peek('GET', KEYS[2]) == ARGV[2] then
  local pttl = redis.call('PTTL', KEYS[2])
  if is_record_of(KEYS[3], ARGV[2]) then
    local left = redis.call('PTTL', KEYS[3])
    if left >= 0 and left < pttl then
      redis.pcall('HINCRBY', KEYS[3], 'u', pttl - left)
    end
  else
    redis.call('HSET', KEYS[3], 'id', ARGV[2])
  end
  local failures = redis.call('HGET', KEYS[3], 'f')
  if failures and not figure(failures) then
    redis.call('HDEL', KEYS[3], 'f')
  end
  redis.call('HINCRBY', KEYS[3], 'f', 1)
  redis.call('PEXPIRE', KEYS[3], pttl > 0 and pttl or ARGV[3])
end
redis.call('DEL', KEYS[1])
return {1, 0}
"""
)

# KEYS settings; ARGV field, value -> the value that it has, which is this one if it had none
SETTINGS: Final = Script("""
local found = redis.call('HGET', KEYS[1], ARGV[1])
if not found then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
return found or ARGV[2]
""")

# KEYS lease; ARGV its holder, another token, grace, whether it is sent again. -> 1 if that holder has it no longer, else 0
# The lease becomes one that has lapsed and that the other token had: the holder can neither renew it nor save.
BREAK: Final = Script(
    _PEEK
    + """
if peek('GET', KEYS[1]) == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return 1
end
return ARGV[4] == '1' and 1 or 0
"""
)

# KEYS id, record; ARGV session ID or '' for any. -> 1 if it was there, else 0
# Sent again, it replies 0 for what the first sending has done: a missing ID may also be somebody else's work.
DELETE: Final = Script(
    _PEEK
    + """
local id = ARGV[1] ~= '' and peek('GET', KEYS[1])
if id == ARGV[1] or ARGV[1] == '' then
  redis.call('DEL', KEYS[2])
  return redis.call('DEL', KEYS[1])
end
return 0
"""
)

# KEYS lease, counter, ...; ARGV token, whether it is sent again.
# -> {1 if it was held or 0, number of counters that were not incremented}
# Sent again, it takes a missing lease for the work of the first sending.
RELEASE: Final = Script(
    _PEEK
    + _COUNT
    + """
local holder = peek('GET', KEYS[1])
if holder == ARGV[1] then
  local uncounted = count(2)
  redis.call('DEL', KEYS[1])
  return {1, uncounted}
end
if ARGV[2] == '1' and not holder then
  return {1, 0}
end
return {0, #KEYS - 1}
"""
)

# KEYS any key, lease. -> the token in the lease, on the server that a proxy chooses by the first key
# This one and the next are short, and sent in many copies by one pipeline: as EVAL.
READ_BACK: Final = "return redis.call('GET', KEYS[2])"

# KEYS any key, for a proxy to choose a server by. -> the run ID of that server
RUN_ID: Final = "return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')"

# ARGV cursor, prefix, count, looser prefix, prefix of the records or '', fields of a record, ...
# -> {next cursor, now ms, keys, PTTLs, values, records, number of near keys, the first 20 of them}
# A record is the values of its fields, and its PTTL.
# Only for a server that has all keys: it declares none that it finds, nor any other, which takes the permission to write.
# On a node of a cluster of Valkey 9, an MGET over several slots would break every script after it (no upstream issue found).
# Keys with that prefix that end in a brace, filtered here because MATCH takes three times as long; near keys have only the
# looser prefix, if one is given. The four lists are of the same length, but that of the records is empty if none were asked
# for. A value is cut one byte past the longest session ID. nil stands for a value of the wrong type, and for a record that
# is not one of the ID.
PAGE: Final = Script(
    _PEEK
    + """
local time = redis.call('TIME')
local scan = redis.call('SCAN', ARGV[1], 'COUNT', ARGV[3])
local prefix, size, keys, pttls, values, records = ARGV[2], #ARGV[2], {}, {}, {}, {}
local looser, loose, near, first_near = ARGV[4], #ARGV[4], 0, {}
local call, sub, byte = redis.call, string.sub, string.byte
local found, count = scan[2], 0
for i = 1, #found do
  local key = found[i]
  if byte(key, -1) == 125 and sub(key, 1, size) == prefix then  -- 125 is }
    count = count + 1
    keys[count] = key
  elseif loose > 0 and sub(key, 1, loose) == looser then
    near = near + 1
    if near <= 20 then
      first_near[near] = key
    end
  end
end
for i = 1, count do
  pttls[i] = call('PTTL', keys[i])
end
for first = 1, count, 4000 do
  local some = call('MGET', unpack(keys, first, math.min(first + 3999, count)))
  for i = 1, #some do
    local value = some[i]
    if value and #value > 257 then
      some[i] = sub(value, 1, 257)
    end
  end
  if count <= 4000 then
    values = some
  else
    for i = 1, #some do
      values[first + i - 1] = some[i]
    end
  end
end
if ARGV[5] ~= '' then
  for i = 1, count do
    local record, fields = ARGV[5] .. sub(keys[i], size + 1), false
    -- For a session without a record, a third of the time of an HMGET.
    if values[i] and peek('HGET', record, ARGV[6]) == values[i] then
      fields = {}
      for j, value in ipairs(call('HMGET', record, unpack(ARGV, 6))) do
        fields[j] = value and sub(value, 1, 4096)
      end
      fields[#fields + 1] = call('PTTL', record)
    end
    records[i] = fields
  end
end
return {scan[1], time[1] * 1000 + math.floor(time[2] / 1000), keys, pttls, values, records, near, first_near}
"""
)

# KEYS id, record, ...; ARGV max age -> for each ID 1 if its TTL was shortened, 2 if it got one, 0 if nothing was changed
# Sent again, it replies 0 for what the first sending has done. PEXPIRE … LT would need Redis 7.
# The record gets the same TTL. What it had less tells that the ID was saved later: that is added to `u`, if it can be.
RETIME: Final = Script(
    _PEEK
    + """
local done, max_age = {}, tonumber(ARGV[1])
for i = 1, #KEYS, 2 do
  local key, record, changed = KEYS[i], KEYS[i + 1], 0
  local pttl = redis.call('PTTL', key)
  if pttl == -1 or pttl > max_age then
    local value = peek('GET', key)
    if type(value) == 'string' and #value <= 256 and string.find(value, '^[A-Za-z0-9][A-Za-z0-9._:%-]*$') then
      local left = redis.call('PTTL', record)
      if left >= 0 and left < pttl then
        redis.pcall('HINCRBY', record, 'u', pttl - left)
      end
      redis.call('PEXPIRE', key, max_age)
      redis.call('PEXPIRE', record, max_age)
      changed = pttl == -1 and 2 or 1
    end
  end
  done[#done + 1] = changed
end
return done
"""
)
