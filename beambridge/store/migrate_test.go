package store

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	"modernc.org/sqlite"

	"github.com/gridbeam/gridbeam/protocol"
)

var quietLog = slog.New(slog.DiscardHandler)

// later is this version's schema and a step that a later version might add.
func later(t *testing.T, step string) fs.FS {
	t.Helper()
	out := fstest.MapFS{}
	names, err := fs.Glob(migrations, "schema/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		b, err := migrations.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		out[filepath.Base(n)] = &fstest.MapFile{Data: b}
	}
	out[fmt.Sprintf("%04d.sql", len(names)+1)] = &fstest.MapFile{Data: []byte(step)}
	return out
}

func TestMigrationsKeepWhatIsThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bridge.db")
	job := protocol.NewJobID()
	s, err := Open(path, quietLog)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Update(t.Context(), func(tx *Tx) error { return tx.PutJob(Job{ID: job, Name: "kept"}) }); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	if _, err := open(path, quietLog, later(t, "CREATE TABLE extra (x); DROP TABLE jobs; no SQL")); err == nil || !strings.Contains(err.Error(), "from version 2 to 3") {
		t.Fatalf("%v, want the step that failed", err)
	}
	for range 2 { // a step that failed has changed nothing; one that succeeded is not repeated
		s, err = open(path, quietLog, later(t, "CREATE TABLE extra (x); INSERT INTO extra VALUES (1);"))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.View(t.Context(), func(tx *Tx) error {
			j, err := tx.GetJob(job)
			if j.Name != "kept" {
				t.Errorf("%+v", j)
			}
			n, err2 := tx.c.integer("SELECT count(*) FROM extra")
			if n != 1 {
				t.Errorf("the step ran %d times", n)
			}
			return errors.Join(err, err2)
		}); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}

	if _, err := Open(path, quietLog); !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), "version 3") {
		t.Errorf("%v, want ErrNewer", err)
	}
}

func TestAnotherProgramsDatabaseIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "other.db")
	c, err := dial(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.run("CREATE TABLE theirs (x)"), c.close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, quietLog); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "another program") {
		t.Errorf("%v, want ErrCorrupt", err)
	}
}

// TestQueriesUseTheirKeys keeps what is asked for every chunk, lease, receipt and posting from reading tables
// from end to end, which nobody notices before there are a million rows.
func TestQueriesUseTheirKeys(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "bridge.db"), quietLog)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	scan := regexp.MustCompile(`SCAN|TEMP B-TREE FOR ORDER BY`)
	if err := s.View(t.Context(), func(tx *Tx) error {
		for _, q := range []*query{
			getJob, getChunk, listChunks, countChunks, getLease, liveLease, attempts, attemptsAt, getStaff, getResult, listResults, getMember, listMembers,
			getReceipt, lastReceipt, listReceipts, getUsage, listUsage, getIdle, listIdle, getScore, getPace, listLogsAt, getVolume, getTransaction,
			lastTransaction, listTransactions, listPostings, getBalance, getToken, refenced, newest, touchStub,
			findStubs, countStubs, countObjects, touchObject, dropStub, dropObject, getCall, callsOfJob,
		} {
			for r, err := range tx.rows(&query{"EXPLAIN QUERY PLAN " + q.sql}, make([]driver.Value, 16)...) {
				if err != nil {
					return err
				}
				r.i = 3
				if plan := r.text(); scan.MatchString(plan) && !allowed(q, plan) {
					t.Errorf("%s\n%s", q.sql, plan)
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// allowed are passes over what is asked for, or over few rows.
func allowed(q *query, plan string) bool {
	switch q {
	case lastTransaction, newest: // from the end of an index to a limit
		return strings.HasPrefix(plan, "SCAN")
	case attemptsAt, listLogsAt, findStubs: // the attempts at one chunk, the stubs of one request
		return strings.Contains(plan, "ORDER BY")
	}
	return false
}

// TestTheWriterSyncsEachCommit cannot pull the plug; it asks SQLite whether every setting was taken.
func TestTheWriterSyncsEachCommit(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "bridge.db"), quietLog)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := <-s.writer
	defer func() { s.writer <- w }()
	mode := ""
	for r, err := range w.rows(&query{"PRAGMA journal_mode"}, nil) {
		if err != nil {
			t.Fatal(err)
		}
		mode = r.text()
	}
	if mode != "wal" {
		t.Errorf("journal_mode is %s", mode)
	}
	for pragma, want := range map[string]int64{"synchronous": 2, "page_size": 4096, "wal_autocheckpoint": 2000, "busy_timeout": 10000, "user_version": 2, "application_id": appID} {
		if got, err := w.integer("PRAGMA " + pragma); got != want || err != nil {
			t.Errorf("%s is %d, %v, want %d", pragma, got, err, want)
		}
	}
	if !sqlite.FdatasyncEnabled() {
		t.Error("commits sync with fsync")
	}
}
