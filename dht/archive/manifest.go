package archive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"path/filepath"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/gridbeam/gridbeam/dht"
)

// ErrManifest means that a manifest is missing, unreadable or not signed by whom it names.
var ErrManifest = errors.New("archive: bad manifest")

// manifestDomain keeps this signature from passing for another one.
const manifestDomain = "gridbeam/crawl/v1"

// Manifest says what a crawl directory is and fixes its files.
type Manifest struct {
	// Version names the form of the files.
	Version string `json:"version"`
	// Software that crawled, such as gridbeam 1.2.3.
	Software string `json:"software"`
	// Command line and seeds, empty when anonymised.
	Command []string `json:"command"`
	// Seeds are the addresses that the crawl began with.
	Seeds []string `json:"seeds"`
	// Observer is the crawler's peer ID while it crawled, empty when anonymised.
	Observer string `json:"observer"`
	// State, StartedAt and FinishedAt as in CrawlFile.
	State string `json:"state"`
	// StartedAt is the crawler's clock.
	StartedAt string `json:"started_at"`
	// FinishedAt is the crawler's clock.
	FinishedAt string `json:"finished_at"`
	// ListenSeconds is how long heartbeats were listened to at least.
	ListenSeconds float64 `json:"listen_seconds"`
	// Counts by name: peers visited, reached, servers, records and so on.
	Counts map[string]int `json:"counts"`
	// Errors count what was received and did not verify, or was more than can be true, by reason.
	Errors map[string]int `json:"errors"`
	// Coverage is how much of the network was seen.
	Coverage ManifestCoverage `json:"coverage"`
	// Anonymised says that peer IDs, addresses, envelopes, labels and volumes were taken out.
	Anonymised bool `json:"anonymised"`
	// Verifiable says what verify can check.
	Verifiable string `json:"verifiable"`
	// Licence and Policy of the data.
	Licence string `json:"licence"`
	// Policy is where to read how the data may be used.
	Policy string `json:"policy"`
	// Files by name.
	Files map[string]ManifestFileEntry `json:"files"`
}

// ManifestCoverage is dht.Coverage on paper; what is not known is null.
type ManifestCoverage struct {
	// FirstPass, SecondPass and BothPasses are how many peers the passes caught.
	FirstPass int `json:"n1"`
	// SecondPass caught so many.
	SecondPass int `json:"n2"`
	// BothPasses caught so many.
	BothPasses int `json:"m"`
	// Seen by any path.
	Seen int `json:"seen"`
	// Estimate of the peers there are, with its 95 % interval.
	Estimate *float64 `json:"estimate"`
	// Low bound of it.
	Low *float64 `json:"estimate_low"`
	// High bound of it, null when unbounded.
	High *float64 `json:"estimate_high"`
	// Share is Seen by Estimate, with its 95 % interval.
	Share *float64 `json:"coverage"`
	// ShareLow bounds it.
	ShareLow *float64 `json:"coverage_low"`
	// ShareHigh bounds it.
	ShareHigh *float64 `json:"coverage_high"`
	// Goal is what was wanted.
	Goal float64 `json:"goal"`
}

// ManifestFileEntry fixes one file.
type ManifestFileEntry struct {
	// SHA256 in hex, Bytes and Rows (lines) of the file.
	SHA256 string `json:"sha256"`
	// Bytes of the file.
	Bytes int64 `json:"bytes"`
	// Rows are its lines.
	Rows int `json:"rows"`
}

// signedManifest is the content of ManifestFile. The signature is over the domain and the manifest in JSON
// without spaces, each with its length in front.
type signedManifest struct {
	Manifest  json.RawMessage `json:"manifest"`
	Signer    string          `json:"signer"`
	Signature string          `json:"signature"`
}

func coverageOnPaper(c dht.Coverage, goal float64) ManifestCoverage {
	m := ManifestCoverage{FirstPass: c.First, SecondPass: c.Second, BothPasses: c.Both, Seen: c.Seen, Goal: goal}
	if !c.Known {
		return m
	}
	share, low, high := c.Share(), c.ShareLow(), c.ShareHigh()
	m.Estimate, m.Low, m.Share, m.ShareLow, m.ShareHigh = &c.Estimate, &c.Low, &share, &low, &high
	if c.High <= 1e18 { // JSON has no infinity
		m.High = &c.High
	}
	return m
}

func toSign(compact []byte) []byte {
	b := protowire.AppendString(nil, manifestDomain)
	return protowire.AppendBytes(b, compact)
}

// signManifest returns the bytes of ManifestFile.
func signManifest(m *Manifest, key crypto.PrivKey) ([]byte, error) {
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("signing the manifest: %w", err)
	}
	body, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encoding the manifest: %w", err)
	}
	sig, err := key.Sign(toSign(body))
	if err != nil {
		return nil, fmt.Errorf("signing the manifest: %w", err)
	}
	b, err := json.MarshalIndent(signedManifest{body, id.String(), base64.StdEncoding.EncodeToString(sig)}, "", "  ")
	return append(b, '\n'), err
}

// readManifest reads and verifies ManifestFile; it returns ErrManifest.
func readManifest(ctx context.Context, dir string) (m Manifest, signer peer.ID, err error) {
	b, err := readFile(ctx, filepath.Join(dir, ManifestFile))
	if err != nil {
		return m, "", fmt.Errorf("%w: %w", ErrManifest, err)
	}
	var s signedManifest
	if err := json.Unmarshal(b, &s); err != nil {
		return m, "", fmt.Errorf("%w: %w", ErrManifest, err)
	}
	var body bytes.Buffer
	if err := json.Compact(&body, s.Manifest); err != nil {
		return m, "", fmt.Errorf("%w: %w", ErrManifest, err)
	}
	if err := json.Unmarshal(body.Bytes(), &m); err != nil {
		return m, "", fmt.Errorf("%w: %w", ErrManifest, err)
	}
	if m.Version != Version {
		return m, "", fmt.Errorf("%w: version %.40q, this reads %s", ErrManifest, m.Version, Version)
	}
	signer, err = peer.Decode(s.Signer)
	if err != nil {
		return m, "", fmt.Errorf("%w: signer %.80q", ErrManifest, s.Signer)
	}
	key, err := signer.ExtractPublicKey()
	if err != nil {
		return m, "", fmt.Errorf("%w: signer: %w", ErrManifest, err)
	}
	sig, err := base64.StdEncoding.DecodeString(s.Signature)
	if err != nil {
		return m, "", fmt.Errorf("%w: signature: %w", ErrManifest, err)
	}
	if ok, err := key.Verify(toSign(body.Bytes()), sig); err != nil || !ok {
		return m, "", fmt.Errorf("%w: the signature of %s does not hold", ErrManifest, signer)
	}
	return m, signer, nil
}

// summer makes the entry of what is written to it.
type summer struct {
	hash hash.Hash
	e    ManifestFileEntry
}

func newSummer() *summer { return &summer{hash: sha256.New()} }

// Write implements io.Writer; it does not fail.
func (s *summer) Write(b []byte) (int, error) {
	s.e.Bytes += int64(len(b))
	s.e.Rows += bytes.Count(b, []byte{'\n'})
	return s.hash.Write(b)
}

func (s *summer) entry() ManifestFileEntry {
	s.e.SHA256 = hex.EncodeToString(s.hash.Sum(nil))
	return s.e
}

// Outcome is how a crawl went, beside its findings.
type Outcome struct {
	// Findings of the survey.
	Findings *dht.Findings
	// Started and Finished by our clock; Complete says that it was not cut off.
	Started, Finished time.Time
	// Complete says that nothing was left to ask.
	Complete bool
	// Listen is how long heartbeats were listened to at least; Goal is the coverage that was wanted.
	Listen time.Duration
	// Goal is the coverage that was wanted.
	Goal float64
	// Observer is who crawled.
	Observer peer.ID
	// Software, Command and Seeds for the manifest.
	Software string
	// Command line of the crawl.
	Command []string
	// Seeds are the addresses that it began with.
	Seeds []string
	// Anonymise takes out what points at a machine or person.
	Anonymise bool
}
