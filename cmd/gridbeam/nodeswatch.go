package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/spf13/cobra"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/dht/archive"
)

// nodeChange is what --watch tells of a node.
type nodeChange struct {
	At    time.Time `json:"at"`
	Event string    `json:"event"` // appeared, gone or changed
	Node  nodeRow   `json:"node"`
}

// watched compares answers.
type watched map[string]nodeRow

// changes returns what a new answer changes, in the order of the peer IDs, and remembers it.
func (w watched) changes(rows []nodeRow, now time.Time) (out []nodeChange) {
	there := map[string]bool{}
	for _, r := range rows {
		there[r.PeerID] = true
		before, known := w[r.PeerID]
		w[r.PeerID] = r
		switch {
		case !known:
			out = append(out, nodeChange{now, "appeared", r})
		case before.saying() != r.saying():
			out = append(out, nodeChange{now, "changed", r})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(w)) {
		if !there[id] {
			out = append(out, nodeChange{now, "gone", w[id]})
			delete(w, id)
		}
	}
	slices.SortStableFunc(out, func(a, b nodeChange) int { return cmp.Compare(a.Node.PeerID, b.Node.PeerID) })
	return out
}

// saying is what a node says, without what changes from one heartbeat to the next by itself.
func (r nodeRow) saying() string {
	return fmt.Sprint(r.State, r.CPU, r.Cores, r.RAM, gpuText(r.GPUs), r.Runs, r.Region, r.Reach, priceText(r.Price), r.Operator, r.Agent)
}

// follow asks again and again, and prints what has changed.
func (f *nodesFlags) follow(ctx context.Context, w io.Writer, d *dht.Directory, query dht.Query) error {
	known := watched{}
	next := time.NewTicker(f.every)
	defer next.Stop()
	for {
		rows, _, err := f.find(ctx, d, query)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		for _, c := range known.changes(rows, time.Now().UTC()) {
			if c.Event == "gone" {
				c.Node.State = whyGone(ctx, d, c.Node.PeerID)
			}
			if f.out.json() {
				err = writeJSON(w, c, false)
			} else {
				_, err = fmt.Fprintf(w, "%s  %-8s  %s  %s  %s  %s\n", c.At.Local().Format(time.TimeOnly), c.Event, c.Node.PeerID, printable(c.Node.State), printable(gpuText(c.Node.GPUs)), priceText(c.Node.Price))
			}
			if err != nil {
				return fmt.Errorf("writing the output: %w", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-next.C:
		}
	}
}

// whyGone asks a node that is listed no more: it may be paused or draining, else it is silent.
func whyGone(ctx context.Context, d *dht.Directory, text string) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	id, err := peer.Decode(text)
	if err != nil {
		return "unknown"
	}
	found, err := d.Get(ctx, id)
	switch {
	case err != nil || found.Availability == nil:
		return "silent"
	case found.State != "":
		return strings.ToLower(found.State)
	}
	return "unknown"
}

func nodesShowCommand() *cobra.Command {
	var f nodesFlags
	var raw bool
	c := &cobra.Command{
		Use:   "show PEER",
		Short: "Everything that one node says of itself, as it has signed it",
		Long: `Asks the node itself for its record and heartbeat, and the directory where it does not answer, verifies them and prints what they say.
--raw prints one line of JSON with the signed envelopes, which anybody verifies again: gridbeam network verify FILE.`,
		Args: exactArgs("PEER"),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := peer.Decode(args[0])
			if err != nil {
				return usagef("PEER is %q; want a whole ID as gridbeam nodes prints it, such as 12D3KooW…", args[0])
			}
			return f.ask(c, func(ctx context.Context, d *dht.Directory) error {
				found, err := d.Get(ctx, id)
				if err != nil {
					return withCode(exitNoMatch, fmt.Errorf("nobody knows %s: %w", id, err))
				}
				return f.show(c.OutOrStdout(), &found, raw)
			})
		},
	}
	f.seedFlags(c)
	c.Flags().BoolVar(&raw, "raw", false, "one line of JSON with the signed envelopes, in base64")
	f.out.flag(c, false)
	return c
}

// show prints a node as crawls write it, with the names of docs/research.md.
func (f *nodesFlags) show(w io.Writer, c *dht.Candidate, raw bool) error {
	now := time.Now()
	seen := dht.Found{
		Peer: c.Peer, Seq: c.Capability.GetSeq(), Raw: c.Record, Record: c.Capability, RawBeat: c.Beat, Beat: c.Availability,
		Via: []string{dht.ViaSelf}, FirstSeen: now, LastSeen: now,
	}
	if c.Beat == nil { // it has not answered itself
		seen.Via = []string{dht.ViaScan}
	}
	if digest := sha256.Sum256(c.Record); !bytes.Equal(c.Availability.GetCapDigest(), digest[:8]) { // it speaks of another record
		seen.Beat, seen.RawBeat = nil, nil
	}
	row := archive.Row(&seen, "")
	if raw {
		return writeJSON(w, row, false)
	}
	row.Record, row.Availability = "", ""
	if f.out.json() {
		return writeJSON(w, row, true)
	}
	text, err := json.Marshal(row)
	if err == nil {
		text, err = yaml.JSONToYAML(text)
	}
	if err != nil {
		return fmt.Errorf("writing the output: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if _, err := fmt.Fprintln(w, printable(strings.TrimSuffix(line, "\n"))); err != nil {
			return fmt.Errorf("writing the output: %w", err)
		}
	}
	return nil
}
