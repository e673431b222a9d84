package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/weir-net/weir/agent/drops"
	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/test/nodetest"
)

// TestDropFile: if the file is full, it becomes FILE.1 and a new one begins.
func TestDropFile(t *testing.T) {
	log := &bytes.Buffer{}
	logger := slog.New(slog.NewTextHandler(log, nil))
	path := filepath.Join(t.TempDir(), "drops")
	f := &dropFile{path: path, most: 1000}
	write := func(count uint64) {
		d := &agentapi.Drop{Kind: agentapi.DropShown, Count: count, Packet: make([]byte, 100)}
		f.write([]drops.Entry{{Drop: d}}, logger)
	}
	for i := range uint64(20) {
		write(i)
	}
	read := func(path string) (counts []uint64) {
		data, err := os.ReadFile(path)
		if err != nil || len(data) > 1000 {
			t.Fatalf("%d bytes, %v", len(data), err)
		}
		for line := range bytes.Lines(data) {
			var d agentapi.Drop
			if err := json.Unmarshal(line, &d); err != nil || d.Packet != nil {
				t.Fatalf("%v: %s", err, line)
			}
			counts = append(counts, d.Count)
		}
		return counts
	}
	earlier, now := read(path+".1"), read(path)
	if all := slices.Concat(earlier, now); len(earlier) == 0 || len(now) == 0 || all[len(all)-1] != 19 ||
		all[0]+uint64(len(all)) != 20 {
		t.Errorf("%d and %d", earlier, now)
	}
	f.close()
	if err := errors.Join(os.Remove(path+".1"), os.MkdirAll(path+".1/x", 0o700)); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(40) { // FILE.1 is a directory, so the file can't be renamed
		write(i)
	}
	if info, err := os.Stat(path); err != nil || info.Size() > 1000 {
		t.Errorf("the file grows to %d bytes: %v", info.Size(), err)
	}
	log.Reset()
	f.close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", path); err != nil {
		t.Fatal(err)
	}
	f.failed = false
	write(1)
	write(2)
	if got := bytes.Count(log.Bytes(), []byte("\n")); got != 1 {
		t.Errorf("%d lines in the log:\n%s", got, log)
	}
}

// TestDropFileOnAFullDisk: if only a part of the drops fits on the disk, no part of them stays in the file.
func TestDropFileOnAFullDisk(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	dir := t.TempDir()
	nodetest.Run(t, "mount", "-t", "tmpfs", "-o", "size=8k", "drops", dir)
	t.Cleanup(func() { nodetest.Run(t, "umount", dir) })
	log := slog.New(slog.DiscardHandler)
	f := &dropFile{path: filepath.Join(dir, "drops"), most: maxDropFile}
	defer f.close()
	write := func(count int) {
		entries := make([]drops.Entry, count)
		for i := range entries {
			entries[i].Drop = &agentapi.Drop{Kind: agentapi.DropShown, Count: 7}
		}
		f.write(entries, log)
	}
	write(1)
	write(1000)
	if !f.failed {
		t.Error("no error on a full disk")
	}
	write(1)
	data, err := os.ReadFile(f.path)
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for line := range bytes.Lines(data) {
		var d agentapi.Drop
		if err := json.Unmarshal(line, &d); err != nil || d.Count != 7 {
			t.Errorf("%v: %.100q", err, line)
		}
		lines++
	}
	if lines != 2 {
		t.Errorf("%d lines, want 2", lines)
	}
}
