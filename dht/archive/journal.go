package archive

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"github.com/gridbeam/gridbeam/dht"
)

// JournalFile holds the events of a crawl that has not ended; Write removes it.
const JournalFile = "_journal.ndjson"

// ErrJournal means that a journal cannot be read.
var ErrJournal = errors.New("archive: the journal cannot be read")

// maxLine bounds a line of any file that is read, in bytes: a server's list of records is the longest.
const maxLine = 64 << 20

// Journal appends the events of a survey to a file, so that one that is cut off can go on. It is safe for
// concurrent use.
type Journal struct {
	mu   sync.Mutex
	f    *os.File
	w    *bufio.Writer
	err  error // the first one
	last time.Time
}

// head is the first line.
type head struct {
	Version   string    `json:"version"`
	StartedAt time.Time `json:"started_at"`
}

// entry is any other line: one of its fields is set.
type entry struct {
	Visit    *journalVisit    `json:"visit,omitempty"`
	Sighting *journalSighting `json:"sighting,omitempty"`
	Sweep    *dht.Sweep       `json:"sweep,omitempty"`
}

type journalSighting struct {
	Peer   peer.ID   `json:"peer"`
	Record []byte    `json:"record,omitempty"`
	Beat   []byte    `json:"beat,omitempty"`
	Via    string    `json:"via"`
	From   string    `json:"from,omitempty"`
	At     time.Time `json:"at"`
}

// journalVisit is a Visit with its addresses as text.
type journalVisit struct {
	dht.Visit

	Addrs, Filtered, Listen []string
	Connected               string
	Neighbors               []peer.AddrInfo
}

// OpenJournal opens the journal of a directory, which it makes if need be. past are the events of a crawl that
// was cut off there and began at started; without one, started is now. The last line may be cut off. It
// returns ErrJournal when the file is of another version or damaged.
func OpenJournal(dir string, now time.Time) (j *Journal, started time.Time, past []dht.SurveyEvent, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, now, nil, fmt.Errorf("making the crawl's directory: %w", err)
	}
	path := filepath.Join(dir, JournalFile)
	started, past, size, err := readJournal(path)
	if err != nil {
		return nil, now, nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, now, nil, fmt.Errorf("opening the journal: %w", err)
	}
	if err = f.Truncate(size); err == nil {
		_, err = f.Seek(size, io.SeekStart)
	}
	if err != nil {
		return nil, now, nil, errors.Join(fmt.Errorf("opening the journal: %w", err), f.Close())
	}
	j = &Journal{f: f, w: bufio.NewWriterSize(f, 1<<16), last: now}
	if size == 0 {
		started = now
		j.line(head{Version, now})
	}
	return j, started, past, j.Flush()
}

// readJournal returns what whole lines say, and how long they are together.
func readJournal(path string) (started time.Time, past []dht.SurveyEvent, size int64, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return started, nil, 0, nil
	} else if err != nil {
		return started, nil, 0, fmt.Errorf("opening the journal: %w", err)
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 1<<16)
	for n := 1; ; n++ {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return started, past, size, nil // a line without its end was being written when the crawl was cut off
		} else if err != nil {
			return started, nil, 0, fmt.Errorf("reading the journal: %w", err)
		}
		if len(line) > maxLine {
			return started, nil, 0, fmt.Errorf("%w: line %d of %s is too long; delete the file to begin anew", ErrJournal, n, path)
		}
		if n == 1 {
			var h head
			if err := json.Unmarshal(line, &h); err != nil || h.Version != Version {
				return started, nil, 0, fmt.Errorf("%w: %s is not of version %s; delete it to begin anew", ErrJournal, path, Version)
			}
			started = h.StartedAt
		} else {
			e, err := readEntry(line)
			if err != nil {
				return started, nil, 0, fmt.Errorf("%w: line %d of %s: %w; delete the file to begin anew", ErrJournal, n, path, err)
			}
			past = append(past, e)
		}
		size += int64(len(line))
	}
}

func readEntry(line []byte) (dht.SurveyEvent, error) {
	var e entry
	if err := json.Unmarshal(line, &e); err != nil {
		return dht.SurveyEvent{}, err
	}
	out := dht.SurveyEvent{Sweep: e.Sweep}
	if s := e.Sighting; s != nil {
		out.Sighting = &dht.Sighting{Peer: s.Peer, Record: s.Record, Beat: s.Beat, Via: s.Via, At: s.At}
		if s.From != "" {
			from, err := peer.Decode(s.From)
			if err != nil {
				return out, fmt.Errorf("from: %w", err)
			}
			out.Sighting.From = from
		}
	}
	if v := e.Visit; v != nil {
		visit := v.Visit
		var err error
		for _, x := range []struct {
			from []string
			to   *[]multiaddr.Multiaddr
		}{{v.Addrs, &visit.Addrs}, {v.Filtered, &visit.Filtered}, {v.Listen, &visit.Listen}} {
			if *x.to, err = parseAddrs(x.from); err != nil {
				return out, err
			}
		}
		if v.Connected != "" {
			if visit.Connected, err = multiaddr.NewMultiaddr(v.Connected); err != nil {
				return out, fmt.Errorf("connected: %w", err)
			}
		}
		visit.Neighbors = v.Neighbors
		out.Visit = &visit
	}
	if out.Visit == nil && out.Sighting == nil && out.Sweep == nil {
		return out, errors.New("no event")
	}
	return out, nil
}

func parseAddrs(texts []string) ([]multiaddr.Multiaddr, error) {
	var out []multiaddr.Multiaddr
	for _, s := range texts {
		a, err := multiaddr.NewMultiaddr(s)
		if err != nil {
			return nil, fmt.Errorf("address %q: %w", s, err)
		}
		out = append(out, a)
	}
	return out, nil
}

// Take appends an event. Every second what was taken goes to the file; an error is told by Flush and Close.
func (j *Journal) Take(e dht.SurveyEvent) {
	var out entry
	switch {
	case e.Visit != nil:
		v := &journalVisit{Visit: *e.Visit, Addrs: texts(e.Visit.Addrs), Filtered: texts(e.Visit.Filtered), Listen: texts(e.Visit.Listen), Neighbors: e.Visit.Neighbors}
		if e.Visit.Connected != nil {
			v.Connected = e.Visit.Connected.String()
		}
		v.Visit.Connected = nil
		out.Visit = v
	case e.Sighting != nil:
		s := e.Sighting
		out.Sighting = &journalSighting{Peer: s.Peer, Record: s.Record, Beat: s.Beat, Via: s.Via, At: s.At}
		if s.From != "" {
			out.Sighting.From = s.From.String()
		}
	default:
		out.Sweep = e.Sweep
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.line(out)
	if now := time.Now(); now.Sub(j.last) > time.Second {
		j.last = now
		j.note(j.w.Flush())
	}
}

// line writes one line; the caller holds mu or is alone.
func (j *Journal) line(v any) {
	b, err := json.Marshal(v)
	if err == nil {
		_, err = j.w.Write(append(b, '\n'))
	}
	j.note(err)
}

func (j *Journal) note(err error) {
	if j.err == nil && err != nil {
		j.err = fmt.Errorf("writing the journal: %w", err)
	}
}

// Flush brings what was taken to the file; it returns the first error there was.
func (j *Journal) Flush() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.note(j.w.Flush())
	return j.err
}

// Close flushes and closes the file, which stays for a later crawl to go on from.
func (j *Journal) Close() error { return errors.Join(j.Flush(), j.f.Close()) }
