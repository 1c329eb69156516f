package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/mattn/go-isatty"
	"golang.org/x/term"
)

// progress shows how far a long operation has come: one line that rewrites itself on a terminal, a line from
// time to time elsewhere. It is safe for concurrent use.
type progress struct {
	w     io.Writer
	fd    int
	tty   bool
	quiet bool
	every time.Duration

	mu   sync.Mutex
	last time.Time
	text string
	open bool // a line without its end stands on the terminal
}

// newProgress writes to w, usually standard error; quiet shows nothing.
func newProgress(w io.Writer, quiet bool) *progress {
	p := &progress{w: w, quiet: quiet, every: 2 * time.Second}
	if f, ok := w.(*os.File); ok && (isatty.IsTerminal(f.Fd()) || isatty.IsCygwinTerminal(f.Fd())) && os.Getenv("TERM") != "dumb" {
		p.tty, p.fd, p.every = true, int(f.Fd()), 50*time.Millisecond
	}
	return p
}

// bar shows done of total with a text; total 0 shows no bar.
func (p *progress) bar(done, total uint64, text string) {
	if total > 0 {
		const width = 24
		full := min(width, int(float64(width)*float64(done)/float64(total)))
		if p.tty {
			text = fmt.Sprintf("[%s%s] %d/%d %s", strings.Repeat("█", full), strings.Repeat("·", width-full), done, total, text)
		} else {
			text = fmt.Sprintf("%d/%d %s", done, total, text)
		}
	}
	p.show(text)
}

// show replaces the present line; elsewhere than on a terminal it is written when it is new and some time has
// passed since the one before.
func (p *progress) show(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.quiet || text == p.text || now.Sub(p.last) < p.every {
		return
	}
	p.last, p.text = now, text
	if !p.tty {
		_, _ = fmt.Fprintln(p.w, text)
		return
	}
	if width, _, err := term.GetSize(p.fd); err == nil && width > 1 {
		if r := []rune(text); len(r) >= width {
			text = string(r[:width-1])
		}
	}
	_, _ = fmt.Fprintf(p.w, "\r\x1b[K%s", text)
	p.open = true
}

// line writes a whole line that stays.
func (p *progress) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.quiet {
		return
	}
	p.clear()
	_, _ = fmt.Fprintf(p.w, format+"\n", args...)
}

// done removes the present line.
func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
}

func (p *progress) clear() {
	if p.open {
		_, _ = fmt.Fprint(p.w, "\r\x1b[K")
		p.open = false
	}
}

// transfer shows how many bytes have passed.
func (p *progress) transfer(what string) func(bytes, total int64) {
	return func(bytes, total int64) {
		if total == 0 && bytes > 1<<20 {
			p.show(fmt.Sprintf("%d KiB %s", bytes>>10, what))
		} else if total > 1<<20 { // less is over before it can be read
			p.bar(uint64(bytes)>>10, uint64(total)>>10, "KiB "+what)
		}
	}
}
