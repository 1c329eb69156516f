// Command guest is the job that the conformance suite of executor runs in each backend: its arguments tell
// it how to behave or to misbehave. It builds for the host and for GOOS=wasip1 GOARCH=wasm.
package main

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "guest: say what to do")
		os.Exit(2)
	}
	act, ok := acts[os.Args[1]]
	if !ok {
		fmt.Fprintln(os.Stderr, "guest: unknown act", os.Args[1])
		os.Exit(2)
	}
	if err := act(os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

var acts = map[string]func(args []string) error{
	"exit":     func(a []string) error { os.Exit(number(a[0])); return nil },
	"print":    func(a []string) error { _, err := fmt.Println(strings.Join(a, " ")); return err },
	"complain": func(a []string) error { _, err := fmt.Fprintln(os.Stderr, strings.Join(a, " ")); return err },
	"env":      func(a []string) error { _, err := fmt.Println(os.Getenv(a[0])); return err },
	"write":    func(a []string) error { return write(a[0], []byte(strings.Join(a[1:], " "))) },
	"cat":      cat,
	"list":     list,
	"spin":     spin,
	"recurse":  func([]string) error { debug.SetMaxStack(1 << 40); fmt.Println(recurse(1)); return nil },
	"alloc":    alloc,
	"fill":     fill,
	"sparse":   sparse,
	"litter":   litter,
	"churn":    churn,
	"flood":    flood,
	"random":   random,
	"clock":    clock,
	"escape":   escape,
	"files":    files,
	"refuse":   refuse,
	"hoard":    hoard,
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(2)
	}
	return n
}

func write(name string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, b, 0o644)
}

func cat(a []string) error {
	b, err := os.ReadFile(a[0])
	if err == nil {
		_, err = os.Stdout.Write(b)
	}
	return err
}

// list prints the names below a directory with kinds, sizes and times.
func list(a []string) error {
	return filepath.Walk(a[0], func(name string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		size := info.Size()
		if info.IsDir() {
			size = 0
		}
		_, err = fmt.Println(name, info.IsDir(), size, info.ModTime().UnixNano())
		return err
	})
}

var sink int

func spin([]string) error {
	fmt.Println("spinning")
	for i := 0; ; i++ {
		sink += i
	}
}

func recurse(n int) int {
	if n == 0 {
		return 0
	}
	return recurse(n+1) + 1
}

// alloc takes and touches memory.
func alloc(a []string) error {
	b := make([]byte, number(a[0]))
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	_, err := fmt.Println("took", len(b))
	return err
}

// fill writes a file of a given size, again and again if it is told to ignore errors.
func fill(a []string) error {
	block := bytes.Repeat([]byte{'x'}, 64<<10)
	f, err := os.Create(a[0])
	if err != nil {
		return err
	}
	for left := number(a[1]); left > 0; {
		n, err := f.Write(block[:min(left, len(block))])
		left -= n
		if err != nil && len(a) < 3 {
			return err
		}
	}
	return f.Close()
}

// sparse makes a file that is large in size only.
func sparse(a []string) error {
	f, err := os.Create(a[0])
	if err != nil {
		return err
	}
	if len(a) > 2 {
		_, err = f.WriteAt([]byte{1}, int64(number(a[1])))
	} else {
		err = f.Truncate(int64(number(a[1])))
	}
	return errors.Join(err, f.Close())
}

// litter makes many empty files.
func litter(a []string) error {
	for i := range number(a[1]) {
		if err := os.WriteFile(filepath.Join(a[0], strconv.Itoa(i)), nil, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// churn writes and removes a file many times; with "hold" it keeps the removed files open.
func churn(a []string) error {
	block := bytes.Repeat([]byte{'x'}, number(a[1]))
	for range number(a[2]) {
		f, err := os.Create(a[0])
		if err != nil {
			return err
		}
		if _, err := f.Write(block); err != nil {
			return err
		}
		if a[3] != "hold" {
			if err := f.Close(); err != nil {
				return err
			}
		}
		if err := os.Remove(a[0]); err != nil {
			return err
		}
	}
	return nil
}

func flood(a []string) error {
	line := strings.Repeat("x", 99) + "\n"
	for i := range number(a[0]) / len(line) {
		if _, err := io.WriteString(os.Stdout, fmt.Sprintf("%09d", i)+line[9:]); err != nil {
			return err
		}
	}
	return nil
}

// random prints random bytes and the order of a map, which the runtime draws.
func random([]string) error {
	b := make([]byte, 32)
	if _, err := rand.Read(b); err != nil {
		return err
	}
	order := map[int]bool{}
	for i := range 64 {
		order[i] = true
	}
	var keys []int
	for k := range order {
		keys = append(keys, k)
	}
	return write("/out/random", fmt.Appendf(nil, "%s %v", hex.EncodeToString(b), keys))
}

// clock writes what the clocks show and how long a sleep of an hour seemed to take.
func clock([]string) error {
	begin := time.Now()
	time.Sleep(time.Hour)
	return write("/out/clock", fmt.Appendf(nil, "%d %s", begin.UnixNano(), time.Since(begin)))
}

// escape tries to reach what is none of its business and prints what it got hold of.
func escape(a []string) error {
	secret := a[0]
	var got []string
	try := func(what string, err error) {
		if err == nil {
			got = append(got, what)
		}
	}
	up := strings.Repeat("../", 32)
	for _, name := range []string{
		secret, up + secret, "/out/" + up + secret, "/data/" + up + secret, "/data/../.." + secret, "/out/./../" + secret,
		"/etc/shadow", "/etc/passwd", up + "etc/passwd", "/proc/1/root/etc/passwd", "/proc/self/environ", "/dev/kmsg",
		"/out/../x", "/data/link", "/data/dir/link",
	} {
		_, err := os.ReadFile(name)
		try("read "+name, err)
		try("make "+name, os.WriteFile(name+".new", []byte("x"), 0o644))
	}
	for _, target := range []string{secret, up + secret, "/etc/passwd", ".."} {
		try("link to "+target, os.Symlink(target, "/out/link"))
		try("hard link to "+target, os.Link(target, "/out/hard"))
		_, err := os.ReadFile("/out/link")
		try("read through a link to "+target, err)
		try("rename "+target, os.Rename(target, "/out/stolen"))
	}
	try("write to a mount", os.WriteFile("/data/new", []byte("x"), 0o644))
	try("append to a mount", appendTo("/data/file"))
	try("truncate a mount", os.Truncate("/data/file", 0))
	try("remove from a mount", os.Remove("/data/file"))
	try("rename in a mount", os.Rename("/data/file", "/data/other"))
	try("mkdir in a mount", os.Mkdir("/data/sub", 0o755))
	try("chtimes in a mount", os.Chtimes("/data/file", time.Now(), time.Now()))
	try("rename out of /out", os.Rename("/out/mine", "/out/../mine"))
	for _, addr := range a[1:] {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		try("connect to "+addr, err)
		if err == nil {
			_ = c.Close()
		}
	}
	_, err := fmt.Println("got:", strings.Join(got, ", "))
	return err
}

func appendTo(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("x")
	return errors.Join(err, f.Close())
}

// files uses the output directory like a careful program: temporary names, renames, seeks, appends.
func files([]string) error {
	const dir = "/out/a/b"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "tmp-*")
	if err != nil {
		return err
	}
	_, e1 := f.WriteString("hello world")
	_, e2 := f.Seek(6, io.SeekStart)
	_, e3 := f.WriteString("there")
	e4 := f.Sync()
	e5 := f.Close()
	e6 := os.Rename(f.Name(), dir+"/final")
	if err := errors.Join(e1, e2, e3, e4, e5, e6, appendTo(dir+"/final")); err != nil {
		return err
	}
	b, err := os.ReadFile(dir + "/final")
	if err != nil || string(b) != "hello therex" {
		return fmt.Errorf("read %q, %v", b, err)
	}
	if err := errors.Join(os.Mkdir("/out/gone", 0o755), os.Remove("/out/gone"), os.Rename("/out/a", "/out/c")); err != nil {
		return err
	}
	for _, name := range []string{"z", "y", "x"} {
		if err := os.WriteFile("/out/c/"+name, []byte(name), 0o644); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir("/out/c")
	if err != nil {
		return err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{"b", "x", "y", "z"}; !slices.Equal(names, want) {
		return fmt.Errorf("directory has %v, want %v", names, want)
	}
	info, err := os.Stat("/out/c/b/final")
	if err != nil || info.Size() != 12 {
		return fmt.Errorf("stat: %v, %v", info, err)
	}
	return nil
}

// refuse checks that wrong use of the output directory gets the errors of POSIX.
func refuse([]string) error {
	if err := errors.Join(os.WriteFile("/out/file", []byte("x"), 0o644), os.MkdirAll("/out/dir/sub", 0o755)); err != nil {
		return err
	}
	for what, err := range map[string]error{
		"open nothing":          second(os.Open("/out/nothing")),
		"create below a file":   os.WriteFile("/out/file/x", nil, 0o644),
		"make what exists":      os.Mkdir("/out/dir", 0o755),
		"remove a full dir":     os.Remove("/out/dir"),
		"dir into itself":       os.Rename("/out/dir", "/out/dir/sub/dir"),
		"dir over a file":       os.Rename("/out/dir", "/out/file"),
		"write a dir":           os.WriteFile("/out/dir", nil, 0o644),
		"a name of 256 bytes":   os.WriteFile("/out/"+strings.Repeat("n", 256), nil, 0o644),
		"a name of no letters":  os.WriteFile("/out/\xff", nil, 0o644),
		"write to /":            os.WriteFile("/file", nil, 0o644),
		"write what is read":    second(readOnly("/out/file")),
		"exclusive and present": second(os.OpenFile("/out/file", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)),
	} {
		if err == nil {
			return fmt.Errorf("%s: no error", what)
		}
	}
	return nil
}

func second[T any](_ T, err error) error { return err }

func readOnly(name string) (int, error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, nil // not the error that is looked for
	}
	defer func() { _ = f.Close() }()
	return f.WriteString("x")
}

// hoard opens a file until it may not, and prints how often it could.
func hoard([]string) error {
	if err := os.WriteFile("/out/file", nil, 0o644); err != nil {
		return err
	}
	var held []*os.File
	for {
		f, err := os.Open("/out/file")
		if err != nil {
			_, err := fmt.Println(len(held))
			return err
		}
		held = append(held, f)
	}
}
