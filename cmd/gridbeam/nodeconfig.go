package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/mattn/go-isatty"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/spf13/cobra"

	"github.com/gridbeam/gridbeam/node"
	"github.com/gridbeam/gridbeam/protocol"
)

// nodeConfig puts flags, node.yaml and what the user's own bridge left together.
func nodeConfig(c *cobra.Command, f *nodeFlags, dir string) (node.Config, error) {
	cfg := node.DefaultConfig(dir)
	cfg.Version = version
	var err error
	if cfg.GPUProof, err = proofLine(); err != nil {
		return cfg, err
	}
	file, err := readNodeFile(filepath.Join(dir, nodeFileName))
	if err != nil {
		return cfg, err
	}
	if len(f.join) == 0 {
		f.join = file.Join
	}
	if len(f.listen) == 0 {
		f.listen = file.Listen
	}
	if len(f.announce) == 0 {
		f.announce = file.Announce
	}
	if f.price == "" {
		f.price = file.Price
	}
	if f.slots == 0 {
		f.slots = file.Slots
	}
	if file.MDNS != nil && !c.Flags().Changed("mdns") {
		f.mdns = *file.MDNS
	}
	if len(f.labels) == 0 {
		f.labels = file.Labels
	}
	cfg.MDNS, cfg.Slots, cfg.Drain, cfg.Measure = f.mdns, f.slots, f.drain, f.measure
	file.choices(c, f, &cfg)
	if f.price != "" {
		ask, err := protocol.ParseMoney(f.price)
		if err != nil || ask < 0 {
			return cfg, usagef("--price is %q, want dollars per slot and hour such as 0.35", f.price)
		}
		cfg.Ask = uint64(ask)
	}
	if cfg.Listen, err = parseAddrs("--listen", f.listen, "/ip4/0.0.0.0/tcp/4001"); err != nil {
		return cfg, err
	}
	if cfg.Announce, err = parseAddrs("--announce", f.announce, "/ip4/203.0.113.7/tcp/4001"); err != nil {
		return cfg, err
	}
	if err := file.policy(&cfg.Policy); err != nil {
		return cfg, err
	}
	if cfg.Place, err = nodePlace(f.region, &file.Location); err != nil {
		return cfg, err
	}
	cfg.NoLandmarks = file.Location.Landmarks != nil && !*file.Location.Landmarks
	cfg.NoResearch = file.Research != nil && !*file.Research
	if f.isolation != "" {
		cfg.Policy.MinIsolation = f.isolation
	}
	if err := joinNetworks(c, f, dir, &cfg); err != nil {
		return cfg, err
	}
	peers := cfg.Join
	for i := range cfg.Networks {
		peers = append(peers, cfg.Networks[i].Bootstrap...)
	}
	cfg.Local = cfg.Local || f.local || localSeeds(peers)
	if cfg.Local && len(cfg.Listen) == 0 && !all(peers, manet.IsIPLoopback) {
		for _, text := range []string{"/ip4/0.0.0.0/udp/0/quic-v1", "/ip4/0.0.0.0/tcp/0"} {
			cfg.Listen = append(cfg.Listen, multiaddr.StringCast(text))
		}
	}
	if cfg.Labels, err = nodeLabels(cfg.Key, f.labels); err != nil {
		return cfg, err
	}
	cfg.OperatorKey, err = operatorKey(c, false)
	return cfg, err
}

// parseAddrs reads the multiaddrs of a flag.
func parseAddrs(flag string, texts []string, like string) (out []multiaddr.Multiaddr, err error) {
	for _, text := range texts {
		a, err := multiaddr.NewMultiaddr(text)
		if err != nil {
			return nil, usagef("%s %s: %s; want for example %s", flag, text, err, like)
		}
		out = append(out, a)
	}
	return out, nil
}

func all(addrs []multiaddr.Multiaddr, is func(multiaddr.Multiaddr) bool) bool {
	for _, a := range addrs {
		if !is(a) {
			return false
		}
	}
	return true
}

// goTypes are the words of a YAML error about which only a programmer knows.
var goTypes = regexp.MustCompile(`cannot unmarshal (\w+) into Go (?:struct field [\w.]+|value) of type (\w+)`)

func readNodeFile(path string) (file nodeFile, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return file, nil
	}
	if err != nil {
		return file, fmt.Errorf("reading the configuration: %w", err)
	}
	if err := yaml.UnmarshalWithOptions(b, &file, yaml.Strict()); err != nil && !errors.Is(err, io.EOF) {
		return file, usagef("%s: %s", path, goTypes.ReplaceAllString(yaml.FormatError(err, false, true), "this is a $1, want a $2"))
	}
	return file, nil
}

// choices are what the owner may say otherwise, by flag or file.
func (file *nodeFile) choices(c *cobra.Command, f *nodeFlags, cfg *node.Config) {
	cfg.MeasureLine = file.MeasureLine
	if c.Flags().Changed("measure-line") {
		cfg.MeasureLine = &f.measureLine
	}
	cfg.OfferCPU = file.offersCPU()
	if c.Flags().Changed("offer-cpu") {
		cfg.OfferCPU = f.offerCPU
	}
	cfg.Metrics = cmp.Or(f.metrics, file.Metrics)
}

// offersCPU says that processors are offered although all GPUs are broken.
func (file *nodeFile) offersCPU() bool { return file.Offer.CPU != nil && *file.Offer.CPU }

func (file *nodeFile) policy(p *node.Policy) error {
	if file.AcceptFrom != "" {
		p.AcceptFrom = file.AcceptFrom
	}
	if file.MinIsolation != "" {
		p.MinIsolation = file.MinIsolation
	}
	if file.MemoryPct != 0 {
		p.Limits.MemoryPercent = file.MemoryPct
	}
	if file.Disk != "" {
		size, err := protocol.ParseByteSize(file.Disk)
		if err != nil {
			return usagef("%s: disk: %s", nodeFileName, err)
		}
		p.Limits.DiskBytes = uint64(size)
	}
	for _, text := range file.Deny {
		id, err := decodePeer(text)
		if err != nil {
			return usagef("%s: deny: %s", nodeFileName, err)
		}
		p.Deny = append(p.Deny, id)
	}
	return nil
}

// invitationFile keeps the networks that the node has joined, an invitation a line.
const invitationFile = "networks"

// joinNetworks finds out whom the node works for: invitations of --join, which are kept, those kept before, the
// file of --network, else the network of this user's own bridge.
func joinNetworks(c *cobra.Command, f *nodeFlags, dir string, cfg *node.Config) error {
	now := time.Now()
	j, err := parseJoin(f.join, now)
	if err != nil {
		return err
	}
	kept := filepath.Join(dir, invitationFile)
	before, err := os.ReadFile(kept)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading the joined networks: %w", err)
	}
	lines := strings.Fields(string(before))
	if len(j.networks) > 0 {
		if err := agree(c, f, j.networks, lines); err != nil {
			return err
		}
		for _, v := range f.join {
			if strings.HasPrefix(v, protocol.InvitationPrefix) {
				lines = append(lines, strings.Join(strings.Fields(v), "")) // copied from a terminal it may be wrapped
			}
		}
		if err := writePrivate(kept, []byte(strings.Join(unique(lines), "\n")+"\n")); err != nil {
			return err
		}
	}
	add := func(n protocol.NetworkFile) {
		for i := range cfg.Networks {
			if cfg.Networks[i].ID == n.ID {
				if n.Supersedes(&cfg.Networks[i]) {
					cfg.Networks[i] = n
				}
				return
			}
		}
		cfg.Networks = append(cfg.Networks, n)
	}
	for _, n := range j.networks {
		add(n)
	}
	cfg.Join = append(cfg.Join, j.bootstrap...)
	cfg.Local = j.local
	for _, text := range lines {
		inv, err := protocol.ParseInvitation(text, time.Time{}) // it was accepted in time
		if err != nil {
			return fmt.Errorf("%s: %w; delete the line", kept, err)
		}
		add(inv.Network)
		cfg.Join = append(cfg.Join, inv.Bootstrap...)
		cfg.Local = cfg.Local || inv.Local
	}
	if f.network != "" {
		b, err := os.ReadFile(f.network)
		if err != nil {
			return usagef("--network: %s", err)
		}
		n, err := protocol.ParseNetworkFile(b)
		if err != nil {
			return usagef("--network %s: %s", f.network, err)
		}
		add(n)
	}
	config, err := configDir(c)
	if err != nil {
		return err
	}
	if inv, ok, err := knownNetwork(config); err == nil && ok && (len(cfg.Networks) == 0 || cfg.Networks[0].ID == inv.Network.ID) {
		add(inv.Network)
		cfg.Join = append(cfg.Join, inv.Bootstrap...)
		cfg.Local = cfg.Local || inv.Local
	} else if err != nil && len(cfg.Networks) == 0 {
		return err
	}
	cfg.Join = uniqueAddrs(cfg.Join)
	return nil
}

// joinedBefore says whether a network was agreed to before. Anybody can write a later version of a network under
// its ID and sign it with roots of its own: only one that the roots agreed to have signed too may take its place.
func joinedBefore(n *protocol.NetworkFile, known []string) (bool, error) {
	var last *protocol.NetworkFile // of those versions that were joined
	for _, k := range known {
		inv, err := protocol.ParseInvitation(k, time.Time{})
		switch {
		case err != nil || inv.Network.ID != n.ID:
		case inv.Network.Same(n):
			return true, nil
		case last == nil || inv.Network.Version > last.Version:
			last = &inv.Network
		}
	}
	if last == nil {
		return false, nil
	}
	if err := n.Succeeds(last); err != nil {
		return false, usagef("--join: this machine has joined network %s with another network file: %s", n.ID, err)
	}
	return true, nil
}

// agree shows whom an invitation trusts and asks once on a terminal; --yes answers elsewhere.
func agree(c *cobra.Command, f *nodeFlags, networks []protocol.NetworkFile, known []string) error {
	for i := range networks {
		n := &networks[i]
		joined, err := joinedBefore(n, known)
		if err != nil {
			return err
		}
		if joined {
			continue
		}
		w := c.ErrOrStderr()
		_, _ = fmt.Fprintf(w, "Network %q (%s): bridges with a grant of these keys may run sandboxed jobs on this machine:\n", printable(n.Name), n.ID)
		for _, r := range n.Roots {
			_, _ = fmt.Fprintf(w, "  %s\n", r)
		}
		if f.yes {
			continue
		}
		in, ok := c.InOrStdin().(*os.File)
		if !ok || !isatty.IsTerminal(in.Fd()) {
			return usagef("joining a network needs a yes: add --yes, or run it on a terminal")
		}
		_, _ = fmt.Fprint(w, "Join? [y/N] ")
		var reply string
		_, _ = fmt.Fscanln(in, &reply)
		if r := strings.ToLower(reply); r != "y" && r != "yes" {
			return withCode(exitFailed, errors.New("not joined"))
		}
	}
	return nil
}

func unique(lines []string) (out []string) {
	seen := map[string]bool{}
	for _, l := range lines {
		if !seen[l] {
			seen[l] = true
			out = append(out, l)
		}
	}
	return out
}

func uniqueAddrs(addrs []multiaddr.Multiaddr) (out []multiaddr.Multiaddr) {
	seen := map[string]bool{}
	for _, a := range addrs {
		if !seen[a.String()] {
			seen[a.String()] = true
			out = append(out, a)
		}
	}
	return out
}
