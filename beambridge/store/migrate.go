package store

import (
	"embed"
	"fmt"
	"io/fs"
	"slices"
)

// appID marks the file as ours in SQLite's header: "gbbs".
const appID = 0x67626273

// migrations hold the schema's history as 0001.sql, 0002.sql …: the n-th leads from version n-1 to n. One
// that was released is never changed.
//
//go:embed schema/*.sql
var migrations embed.FS

// migrate brings the file from its version to the newest, one transaction for each step. It returns
// ErrNewer and ErrCorrupt.
func (c *conn) migrate(dir fs.FS) (from, to int, err error) {
	names, err := fs.Glob(dir, "*.sql")
	if err != nil {
		return 0, 0, err
	}
	slices.Sort(names)
	to = len(names)
	app, err := c.integer("PRAGMA application_id")
	if err != nil {
		return 0, to, err
	}
	version, err := c.integer("PRAGMA user_version")
	if err != nil {
		return 0, to, err
	}
	tables, err := c.integer("SELECT count(*) FROM sqlite_schema")
	if err != nil {
		return 0, to, err
	}
	from = int(version)
	switch {
	case app != appID && (app != 0 || tables > 0):
		return from, to, fmt.Errorf("%w: it belongs to another program (application ID %#x)", ErrCorrupt, app)
	case from > to:
		return from, to, fmt.Errorf("%w: its schema is version %d, this program knows %d; update gridbeam", ErrNewer, from, to)
	case from < 0:
		return from, to, fmt.Errorf("%w: its schema is version %d", ErrCorrupt, from)
	}
	for n := from + 1; n <= to; n++ {
		b, err := fs.ReadFile(dir, fmt.Sprintf("%04d.sql", n))
		if err != nil {
			return from, to, err
		}
		script := fmt.Sprintf("BEGIN IMMEDIATE;\n%s\nPRAGMA application_id=%d;\nPRAGMA user_version=%d;\nCOMMIT;", b, appID, n)
		if err := c.run(script); err != nil {
			_ = c.run("ROLLBACK") // fails when SQLite has rolled back already
			return from, to, fmt.Errorf("migrating from version %d to %d: %w", n-1, n, err)
		}
	}
	return from, to, nil
}
