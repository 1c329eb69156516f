package p2p

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
)

func TestIdentityIsCreatedOnceAndKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "identity.key")
	if _, err := LoadIdentity(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("loading nothing: %v", err)
	}
	key, err := CreateIdentity(path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", st.Mode(), err)
	}
	again, err := LoadIdentity(path)
	if err != nil || !again.Equals(key) {
		t.Errorf("loaded key differs or %v", err)
	}
	if _, err := CreateIdentity(path); !errors.Is(err, ErrKeyExists) {
		t.Errorf("creating over a key: %v, want ErrKeyExists", err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".key-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("temporary files left: %v, %v", left, err)
	}
}

func TestConcurrentFirstStartsAgreeOnOneIdentity(t *testing.T) {
	path := filepath.Join(t.TempDir(), "identity.key")
	keys := make([]crypto.PrivKey, 8)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			var err error
			if keys[i], err = LoadOrCreateIdentity(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, k := range keys[1:] {
		if k == nil || !k.Equals(keys[0]) {
			t.Fatal("two starts run under different keys")
		}
	}
}

func TestKeyFileReadableByOthersIsRefusedWithTheFix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "identity.key")
	if _, err := CreateIdentity(path); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []fs.FileMode{0o644, 0o640, 0o604, 0o620, 0o666, 0o601} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := LoadIdentity(path)
		if !errors.Is(err, ErrKeyMode) || !strings.Contains(err.Error(), "chmod 600 "+path) {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadIdentity(path); err != nil {
		t.Errorf("mode 0400: %v", err)
	}
}

func TestOtherKeysAndOtherFilesAreRefused(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	pemRSA := write("rsa", pem.EncodeToMemory(&pem.Block{Type: pemPrivateKey, Bytes: der}))
	if _, err := LoadIdentity(pemRSA); !errors.Is(err, ErrKeyType) {
		t.Errorf("RSA: %v, want ErrKeyType", err)
	}
	secp, _, err := crypto.GenerateSecp256k1Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := crypto.MarshalPrivateKey(secp)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ImportIdentity(filepath.Join(dir, "x"), write("secp", raw)); !errors.Is(err, ErrKeyType) {
		t.Errorf("secp256k1: %v, want ErrKeyType", err)
	}
	for name, data := range map[string]string{"empty": "", "text": "hello", "long": strings.Repeat("x", maxKeyFile+1)} {
		path := write(name, []byte(data))
		if _, err := LoadIdentity(path); !errors.Is(err, ErrKeyFormat) {
			t.Errorf("%s: %v, want ErrKeyFormat", name, err)
		}
	}
	if _, err := LoadIdentity(dir); !errors.Is(err, ErrKeyFormat) {
		t.Errorf("a directory: %v", err)
	}
	if _, err := New(LoopbackConfig(), secp, nil); !errors.Is(err, ErrKeyType) {
		t.Errorf("New with secp256k1: %v", err)
	}
}

func TestImportKeepsThePeerID(t *testing.T) {
	dir := t.TempDir()
	key := newKey(t)
	raw, err := crypto.MarshalPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"binary": raw, "base64": []byte(base64.StdEncoding.EncodeToString(raw) + "\n")} {
		src := filepath.Join(dir, name)
		if err := os.WriteFile(src, data, 0o644); err != nil {
			t.Fatal(err)
		}
		dst := filepath.Join(dir, name+".key")
		if _, err := ImportIdentity(dst, src); err != nil {
			t.Fatal(err)
		}
		got, err := LoadIdentity(dst)
		if err != nil || !got.Equals(key) {
			t.Errorf("%s: %v", name, err)
		}
	}
	dst := filepath.Join(dir, "pem.key")
	if _, err := ImportIdentity(dst, filepath.Join(dir, "binary.key")); err != nil {
		t.Error(err)
	}
}
