package archive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/dht"
)

// ErrTampered means that a row or file is not what was signed.
var ErrTampered = errors.New("archive: not what was signed")

// Verified is what Verify has checked.
type Verified struct {
	// Records and Heartbeats whose signatures hold.
	Records int `json:"records"`
	// Heartbeats whose signatures hold.
	Heartbeats int `json:"heartbeats"`
	// Files whose hashes hold, 0 for records alone.
	Files int `json:"files"`
	// Signer of the manifest, empty for records alone.
	Signer string `json:"signed_by,omitempty"`
	// Anonymised archives have no signatures of nodes.
	Anonymised bool `json:"anonymised"`
}

// Verify checks a crawl directory, or one file of records, without the network: each record and heartbeat is
// signed by the node that its row names and was valid when it was seen, each column says what the envelope
// says, rows are in order, every file is the one that the manifest names, and the crawler has signed the
// manifest. It returns a *BadRow for the first thing that does not hold, ErrManifest, or ctx's error.
func Verify(ctx context.Context, path string) (Verified, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Verified{}, fmt.Errorf("verifying: %w", err)
	}
	if !info.IsDir() {
		v, err := verifyRecords(ctx, path, filepath.Base(path), false)
		if err == nil && v.Records == 0 {
			err = fmt.Errorf("%w: it has no row, so there is nothing that anybody signed", ErrTampered)
		}
		return v, err
	}
	m, signer, err := readManifest(ctx, path)
	if err != nil {
		return Verified{}, err
	}
	if _, ok := m.Files[RecordsFile]; !ok {
		return Verified{}, fmt.Errorf("%w: it names no %s", ErrManifest, RecordsFile)
	}
	v, err := verifyRecords(ctx, filepath.Join(path, RecordsFile), RecordsFile, m.Anonymised)
	v.Signer, v.Anonymised = signer.String(), m.Anonymised
	if err != nil {
		return v, err
	}
	names := make([]string, 0, len(m.Files))
	for name := range m.Files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := verifyFile(ctx, path, name, m.Files[name]); err != nil {
			return v, err
		}
		v.Files++
	}
	return v, nil
}

func verifyFile(ctx context.Context, dir, name string, want ManifestFileEntry) error {
	if name != filepath.Base(name) || name == "." || name == ".." {
		return &BadRow{File: name, Err: fmt.Errorf("%w: a name outside of the directory", ErrTampered)}
	}
	f, err := openFile(ctx, filepath.Join(dir, name))
	if err != nil {
		return &BadRow{File: name, Err: fmt.Errorf("%w: %w", ErrTampered, err)}
	}
	defer f.Close()
	sum := newSummer()
	if _, err := io.Copy(sum, f); err != nil {
		return &BadRow{File: name, Err: err}
	}
	if got := sum.entry(); got != want {
		return &BadRow{File: name, Err: fmt.Errorf("%w: %d rows with SHA-256 %.16s…, the manifest names %d with %.16s…", ErrTampered, got.Rows, got.SHA256, want.Rows, want.SHA256)}
	}
	return nil
}

func verifyRecords(ctx context.Context, path, name string, anonymised bool) (Verified, error) {
	var v Verified
	f, err := openFile(ctx, path)
	if err != nil {
		return v, fmt.Errorf("verifying: %w", err)
	}
	defer f.Close()
	var last *RecordRow
	err = eachLine(f, name, func(_ int, line []byte) error {
		row := &RecordRow{}
		in := json.NewDecoder(bytes.NewReader(line))
		in.DisallowUnknownFields()
		if err := in.Decode(row); err != nil {
			return fmt.Errorf("%w: not a record: %w", ErrTampered, err)
		}
		if last != nil && !inOrder(last, row) {
			return fmt.Errorf("%w: out of order", ErrTampered)
		}
		last = row
		if anonymised {
			v.Records++
			return nil
		}
		beat, err := verifyRow(row, line)
		if err != nil {
			return err
		}
		v.Records++
		if beat {
			v.Heartbeats++
		}
		return nil
	})
	return v, err
}

// verifyRow opens the envelopes of a row and makes the row anew from them; it says whether there was a heartbeat.
func verifyRow(row *RecordRow, line []byte) (beat bool, err error) {
	id, err := peer.Decode(row.PeerID)
	if err != nil {
		return false, fmt.Errorf("%w: PeerID: %w", ErrTampered, err)
	}
	f := dht.Found{Peer: id, Seq: row.Seq, Via: row.SeenVia, Holders: row.Holders}
	if f.FirstSeen, err = parseStamp(row.FirstSeen); err != nil {
		return false, fmt.Errorf("%w: first_seen: %w", ErrTampered, err)
	}
	if f.LastSeen, err = parseStamp(row.LastSeen); err != nil {
		return false, fmt.Errorf("%w: last_seen: %w", ErrTampered, err)
	}
	if row.Record == "" {
		return false, fmt.Errorf("%w: record_b64 is missing; an anonymised crawl is verified as a directory", ErrTampered)
	}
	if f.Raw, err = base64.StdEncoding.DecodeString(row.Record); err != nil {
		return false, fmt.Errorf("%w: record_b64: %w", ErrTampered, err)
	}
	if f.Record, err = dht.OpenCapability(f.Raw, id, f.FirstSeen); err != nil {
		return false, fmt.Errorf("%w: record_b64: %w", ErrTampered, err)
	}
	if row.Availability != "" {
		if f.RawBeat, err = base64.StdEncoding.DecodeString(row.Availability); err != nil {
			return false, fmt.Errorf("%w: availability_b64: %w", ErrTampered, err)
		}
		if f.Beat, err = dht.OpenAvailability(f.RawBeat, id); err != nil {
			return false, fmt.Errorf("%w: availability_b64: %w", ErrTampered, err)
		}
		if sum := sha256.Sum256(f.Raw); !bytes.Equal(f.Beat.GetCapDigest(), sum[:8]) {
			return false, fmt.Errorf("%w: availability_b64 speaks of another record", ErrTampered)
		}
	}
	if f.Seq = f.Record.GetSeq(); f.Seq != row.Seq {
		return false, fmt.Errorf("%w: seq is %d, the node signed %d", ErrTampered, row.Seq, f.Seq)
	}
	var again bytes.Buffer
	if err := lines([]RecordRow{Row(&f, row.Observer)})(&again); err != nil {
		return false, err
	}
	if want := bytes.TrimSuffix(again.Bytes(), []byte{'\n'}); !bytes.Equal(want, line) {
		return false, fmt.Errorf("%w: %s differs from what the node signed", ErrTampered, differing(line, want))
	}
	return f.Beat != nil, nil
}

// differing names the first column in which two rows differ.
func differing(got, want []byte) string {
	var a, b map[string]json.RawMessage
	if json.Unmarshal(got, &a) != nil || json.Unmarshal(want, &b) != nil {
		return "the row"
	}
	var names []string
	for name := range a {
		if !bytes.Equal(a[name], b[name]) {
			names = append(names, name)
		}
	}
	for name := range b {
		if _, ok := a[name]; !ok {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "the writing of the row"
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ", ")
}
