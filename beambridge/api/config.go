package api

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// ErrConfig means that a configuration field is out of range; the text names it.
var ErrConfig = errors.New("api: invalid configuration")

// Config says what the API accepts.
type Config struct {
	// Spool is the directory for uploads on their way in; it should be on the disk of the volumes. No default.
	Spool string
	// Configure, if not nil, changes the HTTP server before it serves: other faces on it may need more of it. Default nil.
	Configure func(*http.Server)
	// Rate is requests per second of a principal, waits and streams apart. Default 50 (trust.md 4); 0 has no
	// bound, for benchmarks.
	Rate float64
	// Burst is how many requests may come at once. Default 100 (trust.md 4).
	Burst int
	// AuthFailures is how many bad tokens an address may show in a minute. Default 10 (trust.md 4).
	AuthFailures int
	// Conns is how many connections may be open at once from other machines, and as many again from this one, all
	// listeners together. Default 4096: a client takes one for all of its calls, and each costs some 50 KiB.
	Conns int
	// ConnsPerAddress is how many may come from one address, IPv6 by /64; this machine has no such bound. Default
	// 256: an office behind one address.
	ConnsPerAddress int
	// ModuleBytes bounds a module. Default 256 MiB (execution.md 2).
	ModuleBytes int64
	// VolumeBytes bounds the files of one volume's tar stream. Default 1 TiB: the disk says no long before.
	VolumeBytes int64
	// VolumeEntries bounds its files and directories. Default 2,000,000 (volumes.md 13).
	VolumeEntries int
	// JobBytes bounds the body of a job with its lines of inputs. Default 64 MiB.
	JobBytes int64
	// JSONBytes bounds every other JSON body. Default 64 KiB.
	JSONBytes int64
	// Uploads is how many modules and volumes may be on their way in at once. Default 4: each is one disk's
	// work.
	Uploads int
	// BodyIdle is how long a body may stand still. Default 30 s.
	BodyIdle time.Duration
	// BodyRate is the bytes a second below which a body is too slow, on average after BodyIdle. Default 1 KiB.
	BodyRate int64
	// MaxWait bounds ?timeout= and ?wait=. Default 5 min: proxies cut what is silent for longer.
	MaxWait time.Duration
	// Beat is how often an otherwise silent stream says that it lives. Default 15 s.
	Beat time.Duration
	// Every is the shortest time between two states of an event stream. Default 200 ms: what an eye follows.
	Every time.Duration
	// WriteIdle is how long a client may refuse to read. Default 60 s.
	WriteIdle time.Duration
}

// DefaultConfig returns the defaults; spool is where uploads wait.
func DefaultConfig(spool string) Config {
	return Config{
		Spool: spool, Rate: 50, Burst: 100, AuthFailures: 10, Conns: 4096, ConnsPerAddress: 256, ModuleBytes: 256 << 20, VolumeBytes: 1 << 40, VolumeEntries: 2_000_000,
		JobBytes: 64 << 20, JSONBytes: 64 << 10, Uploads: 4, BodyIdle: 30 * time.Second, BodyRate: 1 << 10, MaxWait: 5 * time.Minute,
		Beat: 15 * time.Second, Every: 200 * time.Millisecond, WriteIdle: time.Minute,
	}
}

// Validate returns ErrConfig naming the field that is out of range.
func (c Config) Validate() error {
	for _, f := range []struct {
		name string
		ok   bool
	}{
		{"Spool", c.Spool != ""},
		{"Rate", c.Rate >= 0},
		{"Burst", c.Burst >= 1},
		{"AuthFailures", c.AuthFailures >= 1},
		{"Conns", c.Conns >= 1},
		{"ConnsPerAddress", c.ConnsPerAddress >= 1 && c.ConnsPerAddress <= c.Conns},
		{"ModuleBytes", c.ModuleBytes >= 8},
		{"VolumeBytes", c.VolumeBytes >= 1},
		{"VolumeEntries", c.VolumeEntries >= 1},
		{"JobBytes", c.JobBytes >= 1},
		{"JSONBytes", c.JSONBytes >= 1},
		{"Uploads", c.Uploads >= 1},
		{"BodyIdle", c.BodyIdle > 0},
		{"BodyRate", c.BodyRate >= 0},
		{"MaxWait", c.MaxWait > 0},
		{"Beat", c.Beat > 0},
		{"Every", c.Every >= 0},
		{"WriteIdle", c.WriteIdle > 0},
	} {
		if !f.ok {
			return fmt.Errorf("%w: %s is out of range", ErrConfig, f.name)
		}
	}
	return nil
}
