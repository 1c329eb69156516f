package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/spf13/cobra"

	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
)

// Files in the user's configuration directory. They are what lets the commands of one user on one machine
// find each other without setup (trust.md 1).
const (
	clientFile   = "client.json"  // where the bridge's API is, and a token for it
	networkFile  = "network"      // an invitation to the user's own network
	operatorFile = "operator.key" // signs that a node is the user's own
)

// configDir returns --config-dir, or gridbeam in the user's configuration directory.
func configDir(c *cobra.Command) (string, error) {
	if dir, _ := c.Flags().GetString("config-dir"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", usagef("no configuration directory: %s; set HOME or say --config-dir DIR", err)
	}
	return filepath.Join(dir, "gridbeam"), nil
}

// dataDir returns --data, or role in the user's data directory.
func dataDir(c *cobra.Command, role string) (string, error) {
	if dir, _ := c.Flags().GetString("data"); dir != "" {
		return filepath.Abs(dir)
	}
	base := os.Getenv("XDG_DATA_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", usagef("no home directory: %s; say --data DIR", err)
		}
		base = filepath.Join(home, ".local", "share")
	}
	return filepath.Join(base, "gridbeam", role), nil
}

// writePrivate replaces a file that only its owner may read, whole or not at all.
func writePrivate(path string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("making the directory of %s: %w", path, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*") // mode 0600
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", path, err), os.Remove(f.Name()))
	}
	return nil
}

// clientSettings say where the bridge's API is.
type clientSettings struct {
	API   string `json:"api"`
	Token string `json:"token"`
	// TLS is the SHA-256 of the certificate that this user's own bridge shows, in hex: it is trusted by that, whatever
	// name or issuer it has. Empty is without TLS, or by the system's roots.
	TLS string `json:"tls_sha256,omitempty"`
}

// readClient returns the settings that the last bridge of this user left; fs.ErrNotExist when there is none.
func readClient(dir string) (clientSettings, error) {
	var s clientSettings
	path := filepath.Join(dir, clientFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("%s cannot be read (%w); delete it and start the bridge again", path, err)
	}
	return s, nil
}

// knownNetwork returns the invitation that the user's own bridge left, if there is one.
func knownNetwork(dir string) (protocol.Invitation, bool, error) {
	path := filepath.Join(dir, networkFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return protocol.Invitation{}, false, nil
	}
	if err != nil {
		return protocol.Invitation{}, false, err
	}
	inv, err := protocol.ParseInvitation(string(b), time.Now())
	if err != nil {
		return inv, false, fmt.Errorf("%s: %w; start the bridge again to renew it", path, err)
	}
	return inv, true, nil
}

// join is what --join names: invitations with whom they trust, and bare addresses, which grant nothing.
type join struct {
	local     bool // one of the invitations is to a network of one machine or LAN
	networks  []protocol.NetworkFile
	bootstrap []multiaddr.Multiaddr
}

// parseJoin reads --join values.
func parseJoin(values []string, now time.Time) (join, error) {
	var j join
	for _, v := range values {
		if strings.HasPrefix(v, protocol.InvitationPrefix) {
			inv, err := protocol.ParseInvitation(v, now)
			if err != nil {
				return j, usagef("--join: %s", err)
			}
			j.networks, j.bootstrap = append(j.networks, inv.Network), append(j.bootstrap, inv.Bootstrap...)
			j.local = j.local || inv.Local
			continue
		}
		a, err := parseAddr(v)
		if err != nil {
			return j, usagef("--join %s: %s", v, err)
		}
		j.bootstrap = append(j.bootstrap, a)
	}
	return j, nil
}

// parseAddr reads the address of a peer.
func parseAddr(v string) (multiaddr.Multiaddr, error) {
	a, err := multiaddr.NewMultiaddr(v)
	if err != nil {
		return nil, fmt.Errorf("neither an invitation (%s…) nor an address such as /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo…", protocol.InvitationPrefix)
	}
	if _, err := a.ValueForProtocol(multiaddr.P_P2P); err != nil {
		return nil, errors.New("the address has to end in /p2p/<peer ID>")
	}
	return a, nil
}

// operatorKey loads the key by which this user names own nodes; create makes it if there is none, else it is nil
// then.
func operatorKey(c *cobra.Command, create bool) (crypto.PrivKey, error) {
	dir, err := configDir(c)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, operatorFile)
	if create {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("making the configuration directory: %w", err)
		}
		return p2p.LoadOrCreateIdentity(path)
	}
	key, err := p2p.LoadIdentity(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return key, err
}

func peerOf(key crypto.PrivKey) (protocol.PeerID, error) {
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return "", fmt.Errorf("deriving the peer ID: %w", err)
	}
	return id, nil
}

func decodePeer(text string) (protocol.PeerID, error) {
	id, err := peer.Decode(text)
	if err != nil {
		return "", fmt.Errorf("%q is no peer ID such as 12D3KooW…", text)
	}
	return id, nil
}
