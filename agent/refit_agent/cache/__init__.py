"""The engine cache: published engines, found in microseconds, replaced only whole.

<cache>/                 0700, owned by the user
  CACHEDIR.TAG           backup programs pass it over
  engines/<key>/         one published engine; appears by a rename, never half-written
    entry.json           what it is; its mtime is the last use; a shared lock on it is a lease
    ...                  the files that entry.json lists
  locks/<key>.lock       held by whoever is making that engine
  tmp/<key>.<unique>/    an engine in the making, owned by the holder of the lock
  quarantine/            damaged engines, until the next prune
"""
