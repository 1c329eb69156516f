package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
)

type landmarksFlags struct {
	file, key, to string
	sign, clear   bool
	out           output
}

// landmarksView is what the command prints.
type landmarksView struct {
	Network   protocol.NetworkID `json:"network"`
	Name      string             `json:"name"`
	Seq       uint32             `json:"seq"`
	Named     bool               `json:"named"`
	Epoch     uint32             `json:"epoch"`
	Landmarks []string           `json:"landmarks"`
	Written   string             `json:"written,omitempty"`
	Missing   string             `json:"missing,omitempty"`
}

// landmarksCommand shows, names and signs a network's landmarks.
func landmarksCommand() *cobra.Command {
	var f landmarksFlags
	c := &cobra.Command{
		Use: "landmarks [ADDRESS/p2p/PEER[=PLACE] ...]", Short: "Show or name the peers that tell how far nodes are from one another",
		Long: `Shows the landmarks of a network, or names others: peers that are always there and that every member measures its round trips to.
Where two nodes have answered the same landmarks, their own round trip is estimated before anybody is pinged. 32 landmarks spread over
where the nodes are do well, 8 find fewer. Without any the network's roots are measured, which on a bridge's own network is the bridge.

=PLACE is the country or subdivision where a landmark stands: by naming it the roots vouch for it, and the landmark becomes an observer of
the places that nodes claim (three are needed). For example:

  gridbeam network landmarks /ip4/203.0.113.7/udp/4001/quic-v1/p2p/12D3Koo...=DE /dns4/us.example.org/tcp/4001/p2p/12D3Koo...=US-CA

The names stand beside the network file under the roots' signatures, so that older programs still read it. On the bridge's machine its
own file and key are taken; start the bridge again then, and nodes hear of it by themselves. In a network that several roots have to sign, send
the file that --to names from one to the next, who signs it by --sign.`,
		RunE: func(c *cobra.Command, args []string) error { return runLandmarks(c, &f, args) },
	}
	fl := c.Flags()
	fl.String("data", "", "data directory of the bridge (default: gridbeam/bridge in the user's data directory)")
	fl.StringVar(&f.file, "file", "", "network file (default: network in the bridge's data directory)")
	fl.StringVar(&f.key, "key", "", "key of a root of the network (default: identity.key in the bridge's data directory)")
	fl.StringVar(&f.to, "to", "", "write the file here (default: --file, once enough roots have signed)")
	fl.BoolVar(&f.sign, "sign", false, "add this root's signature to landmarks that another root has named")
	fl.BoolVar(&f.clear, "clear", false, "name none: the roots are measured")
	f.out.flag(c, false)
	return c
}

func runLandmarks(c *cobra.Command, f *landmarksFlags, args []string) error {
	if f.sign && (f.clear || len(args) > 0) || f.clear && len(args) > 0 {
		return usagef("name landmarks, or say --clear, or say --sign: one of the three")
	}
	dir, err := dataDir(c, "bridge")
	if err != nil {
		return err
	}
	if f.file == "" {
		f.file = filepath.Join(dir, "network")
	}
	if f.key == "" {
		f.key = filepath.Join(dir, "identity.key")
	}
	raw, err := os.ReadFile(f.file)
	if err != nil {
		return usagef("the network file: %s; say --file, or start a bridge, which makes one", err)
	}
	n, err := protocol.ReadNetworkFile(raw)
	if err != nil {
		return usagef("%s: %s", f.file, err)
	}
	v := landmarksView{Network: n.ID, Name: n.Name}
	switch {
	case f.sign || f.clear || len(args) > 0:
		if err := f.change(&n, args, &v); err != nil {
			return err
		}
	default:
		if _, err := protocol.ParseNetworkFile(raw); err != nil {
			v.Missing = err.Error()
		}
	}
	list := n.LandmarkList()
	v.Seq, v.Named, v.Epoch = n.LandmarkSeq, len(n.Landmarks) > 0, protocol.LandmarkEpoch(list)
	for _, l := range list {
		v.Landmarks = append(v.Landmarks, l.String())
	}
	return f.out.object(c.OutOrStdout(), v, func(w io.Writer) { writeLandmarks(w, &v) })
}

// change names or signs, and writes the file.
func (f *landmarksFlags) change(n *protocol.NetworkFile, args []string, v *landmarksView) error {
	if !f.sign {
		var list []protocol.Landmark
		for _, text := range args {
			l, err := protocol.ParseLandmark(text)
			if err != nil {
				return usagef("landmark %s: %s; want for example /ip4/203.0.113.7/tcp/4001/p2p/12D3Koo...=DE", text, err)
			}
			list = append(list, l)
		}
		if err := n.SetLandmarks(list); err != nil {
			return usagef("%s", err)
		}
	}
	key, err := p2p.LoadIdentity(f.key)
	if err != nil {
		return err
	}
	if err := n.SignLandmarks(key); errors.Is(err, protocol.ErrAuthor) {
		return usagef("--key %s: %s", f.key, err)
	} else if err != nil {
		return usagef("%s", err)
	}
	_, err = protocol.ParseNetworkFile(n.Bytes())
	if err != nil {
		v.Missing = err.Error()
	}
	v.Written = f.to
	switch {
	case f.to == "" && err != nil:
		return usagef("other roots have to sign too (%s): say --to FILE and send it to one of them", err)
	case f.to == "":
		v.Written = f.file
	}
	return writePrivate(v.Written, n.Bytes())
}

func writeLandmarks(w io.Writer, v *landmarksView) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	p("network    %s %q", v.Network, printable(v.Name))
	if !v.Named {
		p("landmarks  none named; its roots are measured")
	}
	for _, l := range v.Landmarks {
		p("landmark   %s", printable(l))
	}
	if v.Missing != "" {
		p("missing    %s", printable(v.Missing))
	}
	if v.Written != "" {
		p("written    %s", v.Written)
	}
	if v.Written != "" && v.Missing == "" {
		p("\nNext: start the bridge again; nodes that are connected take the new landmarks within 6 hours, others from a new invitation")
	}
}
