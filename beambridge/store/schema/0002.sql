-- What Beam's clients keep at a bridge: uploaded code, prepared functions, deployments, and one row for each call.
CREATE TABLE objects (
  user TEXT NOT NULL, hash TEXT NOT NULL, root BLOB NOT NULL, name TEXT NOT NULL, size INTEGER NOT NULL, created INTEGER NOT NULL,
  PRIMARY KEY (user, hash)
) STRICT, WITHOUT ROWID;

CREATE TABLE stubs (
  id TEXT NOT NULL PRIMARY KEY, user TEXT NOT NULL, digest BLOB NOT NULL, name TEXT NOT NULL, created INTEGER NOT NULL, body BLOB
) STRICT, WITHOUT ROWID;
CREATE INDEX stubs_digest ON stubs (user, digest);

CREATE TABLE deployments (
  id TEXT NOT NULL PRIMARY KEY, user TEXT NOT NULL, type TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, stub TEXT NOT NULL,
  active INTEGER NOT NULL, deleted INTEGER NOT NULL, created INTEGER NOT NULL, updated INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX deployments_name ON deployments (user, type, name, version);

CREATE TABLE calls (
  id TEXT NOT NULL PRIMARY KEY, user TEXT NOT NULL, stub TEXT NOT NULL, deployment TEXT NOT NULL, job BLOB NOT NULL, input INTEGER NOT NULL,
  headless INTEGER NOT NULL, state TEXT NOT NULL, args TEXT NOT NULL, tries INTEGER NOT NULL, result BLOB, encoding TEXT NOT NULL,
  exit INTEGER NOT NULL, reason INTEGER NOT NULL, text TEXT NOT NULL, node BLOB NOT NULL, written BLOB, created INTEGER NOT NULL,
  started INTEGER NOT NULL, ended INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX calls_job ON calls (job, input);
CREATE INDEX calls_user ON calls (user, created);
CREATE INDEX calls_open ON calls (ended, created);
