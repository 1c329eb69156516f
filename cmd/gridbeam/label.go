package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gridbeam/gridbeam/node"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// nodeLabels reads the labels of a node's configuration.
func nodeLabels(key string, texts []string) (out []*pb.Label, err error) {
	if len(texts) == 0 {
		return nil, nil
	}
	if err := os.MkdirAll(filepath.Dir(key), 0o700); err != nil {
		return nil, fmt.Errorf("making the data directory: %w", err)
	}
	identity, err := p2p.LoadOrCreateIdentity(key) // the node's own first step, too
	if err != nil {
		return nil, err
	}
	id, err := peerOf(identity)
	if err != nil {
		return nil, err
	}
	for _, text := range texts {
		l, err := protocol.ParseLabel(text, id, time.Now())
		if err != nil {
			return nil, usagef("--label: %s", err)
		}
		out = append(out, l)
	}
	return out, nil
}

func labelText(l *node.LabelStatus) string {
	text := printable(l.Key) + "=" + printable(l.Value)
	if l.Issuer == "" {
		return text + ", its own claim"
	}
	return fmt.Sprintf("%s, says %s until %s", text, l.Issuer, l.Expires.Format(time.DateOnly))
}

// labelCommand signs what this user says of a node.
func labelCommand() *cobra.Command {
	var out output
	var days int
	c := &cobra.Command{
		Use: "label PEER KEY=VALUE", Short: "Sign what you say of a node, for its owner to put into its record", Args: exactArgs("PEER", "KEY=VALUE"),
		Long: `Signs a label about a node with this user's operator key. Bridges of this user, and of networks of which the key is a root, believe it:
a job that asks for host_type: datacenter or compliance: [gdpr] takes nodes that carry such a label, and nobody who only claims it.

Print it on the bridge's machine and start the node with it: gridbeam node run --label gridbeam-label:...
Keys that jobs ask for: host.type (datacenter, miner, partner) and compliance (soc2, hipaa, gdpr, confidential, homomorphic).`,
		RunE: func(c *cobra.Command, args []string) error {
			subject, err := decodePeer(args[0])
			if err != nil {
				return usagef("PEER: %s", err)
			}
			key, value, ok := strings.Cut(args[1], "=")
			if !ok || key == "" || value == "" {
				return usagef("KEY=VALUE is %q, want for example host.type=datacenter", args[1])
			}
			if err := protocol.CheckLabel(key, value); err != nil {
				return usagef("KEY=VALUE: %s", err)
			}
			if days < 1 || days > 3650 {
				return usagef("--days is %d, want 1 to 3650", days)
			}
			issuer, err := operatorKey(c, false)
			if err != nil {
				return err
			}
			if issuer == nil {
				return withCode(exitNoMatch, errors.New("this user has no operator key yet; gridbeam bridge run makes one"))
			}
			l, err := protocol.SignLabel(issuer, subject, key, value, time.Now().AddDate(0, 0, days))
			if err != nil {
				return usagef("KEY=VALUE: %s", err)
			}
			text, err := protocol.LabelText(l)
			if err != nil {
				return err
			}
			v := struct {
				Subject protocol.PeerID `json:"subject"`
				Key     string          `json:"key"`
				Value   string          `json:"value"`
				Issuer  protocol.PeerID `json:"issuer"`
				Expires time.Time       `json:"expires"`
				Label   string          `json:"label"`
			}{subject, key, value, protocol.PeerID(l.GetIssuer()), time.UnixMilli(l.GetExpires()).UTC(), text}
			return out.object(c.OutOrStdout(), v, func(w io.Writer) { _, _ = fmt.Fprintln(w, text) })
		},
	}
	c.Flags().IntVar(&days, "days", 365, "how long it holds")
	out.flag(c, false)
	return c
}
