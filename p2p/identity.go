package p2p

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/crypto/pb"
)

// ErrKeyMode means that a key file can be read or written by users other than its owner.
var ErrKeyMode = errors.New("p2p: key file is open to other users")

// ErrKeyType means that a key is not Ed25519, the only kind that gridbeam peers use (trust.md 1).
var ErrKeyType = errors.New("p2p: key is not Ed25519")

// ErrKeyExists means that a key file would have been overwritten.
var ErrKeyExists = errors.New("p2p: key file exists already")

// ErrKeyFormat means that a file holds no private key in a form that gridbeam reads.
var ErrKeyFormat = errors.New("p2p: not a private key file")

// maxKeyFile bounds what is read of a key file, in bytes; a PKCS#8 Ed25519 key takes 119.
const maxKeyFile = 16 << 10

const pemPrivateKey = "PRIVATE KEY"

// LoadIdentity reads the Ed25519 private key (PKCS#8 in PEM) at path. A file that others may read or write
// is refused with ErrKeyMode and the command that mends it; other errors are ErrKeyType, ErrKeyFormat and
// those of the file system (fs.ErrNotExist when there is none).
func LoadIdentity(path string) (crypto.PrivKey, error) {
	raw, err := readKeyFile(path, true)
	if err != nil {
		return nil, err
	}
	key, err := parsePEM(raw)
	if err != nil {
		return nil, fmt.Errorf("reading key file %s: %w", path, err)
	}
	return key, nil
}

// CreateIdentity makes a new Ed25519 key and stores it at path with mode 0600. It never overwrites:
// ErrKeyExists. After a crash there is either the whole key or none.
func CreateIdentity(path string) (crypto.PrivKey, error) {
	_, std, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return storeKey(path, std)
}

// LoadOrCreateIdentity loads the key at path, or creates it when there is none. The errors are those of
// LoadIdentity and CreateIdentity.
func LoadOrCreateIdentity(path string) (crypto.PrivKey, error) {
	key, err := LoadIdentity(path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err = CreateIdentity(path)
		if errors.Is(err, ErrKeyExists) { // somebody was faster
			return LoadIdentity(path)
		}
	}
	return key, err
}

// ImportIdentity copies the Ed25519 key in the file src to path, so that the peer ID is kept. src may be
// PKCS#8 in PEM or a libp2p private key (binary or base64, as other libp2p programs write it). The errors
// are those of LoadIdentity and CreateIdentity.
func ImportIdentity(path, src string) (crypto.PrivKey, error) {
	raw, err := readKeyFile(src, false)
	if err != nil {
		return nil, err
	}
	key, err := parseAny(raw)
	if err != nil {
		return nil, fmt.Errorf("reading key file %s: %w", src, err)
	}
	seed, err := key.Raw()
	if err != nil {
		return nil, fmt.Errorf("reading key file %s: %w", src, err)
	}
	return storeKey(path, ed25519.PrivateKey(seed))
}

func readKeyFile(path string, private bool) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening key file: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("opening key file: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is not a regular file", ErrKeyFormat, path)
	}
	if private && st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s has mode %04o; run: chmod 600 %s", ErrKeyMode, path, st.Mode().Perm(), path)
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading key file %s: %w", path, err)
	}
	if len(raw) > maxKeyFile {
		return nil, fmt.Errorf("%w: %s is longer than %d bytes", ErrKeyFormat, path, maxKeyFile)
	}
	return raw, nil
}

func parsePEM(raw []byte) (crypto.PrivKey, error) {
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != pemPrivateKey {
		return nil, fmt.Errorf("%w: want PEM %q; `gridbeam node init --import-key` converts other forms", ErrKeyFormat, pemPrivateKey)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyFormat, err)
	}
	std, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%w: it is a %T", ErrKeyType, key)
	}
	priv, _, err := crypto.KeyPairFromStdKey(&std)
	return priv, err
}

func parseAny(raw []byte) (crypto.PrivKey, error) {
	if block, _ := pem.Decode(raw); block != nil {
		return parsePEM(raw)
	}
	if text, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(raw))); err == nil {
		raw = text
	}
	key, err := crypto.UnmarshalPrivateKey(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyFormat, err)
	}
	if key.Type() != pb.KeyType_Ed25519 {
		return nil, fmt.Errorf("%w: it is %s", ErrKeyType, key.Type())
	}
	return key, nil
}

func storeKey(path string, std ed25519.PrivateKey) (crypto.PrivKey, error) {
	der, err := x509.MarshalPKCS8PrivateKey(std)
	if err != nil {
		return nil, fmt.Errorf("encoding a key: %w", err)
	}
	if err := createFile(path, pem.EncodeToMemory(&pem.Block{Type: pemPrivateKey, Bytes: der})); err != nil {
		return nil, err
	}
	key, _, err := crypto.KeyPairFromStdKey(&std)
	return key, err
}

// createFile writes data to a temporary neighbour with mode 0600, makes it durable and gives it its name.
// The name is given by a hard link, which unlike a rename fails when the name is taken.
func createFile(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, ".key-*") // CreateTemp uses mode 0600
	if err != nil {
		return fmt.Errorf("creating key file: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err != nil {
		return fmt.Errorf("writing key file %s: %w", path, err)
	}
	err = os.Link(tmp.Name(), path)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: %s", ErrKeyExists, path)
	}
	if err != nil { // a file system without hard links
		if _, statErr := os.Lstat(path); !errors.Is(statErr, fs.ErrNotExist) {
			return fmt.Errorf("%w: %s", ErrKeyExists, path)
		}
		if err = os.Rename(tmp.Name(), path); err != nil {
			return fmt.Errorf("creating key file: %w", err)
		}
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	if err = errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	return nil
}
