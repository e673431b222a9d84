package endpoint

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzLoad: if Load of random content returns no error, the record has the ID that Load was called with.
func FuzzLoad(f *testing.F) {
	for _, s := range []string{
		`{"containerID": "c", "ifName": "eth0", "pod": {"namespace": "ns", "name": "p"}, ` +
			`"addresses": [{"address": "10.88.0.2", "subnet": "10.88.0.0/24", "gateway": "10.88.0.1"}], ` +
			`"mac": "0a:58:0a:58:00:02", "hostInterface": "weirp0", "enforcement": "strict"}`,
		`{"containerID": "../../etc", "ifName": "x"}`,
		`{"containerID": "c", "ifName": "eth0", "addresses": [{"address": ""}]}`,
		`{"containerID": "c", "ifName": "e:0", "addresses": [{"address": "fe80::1%x", "subnet": "::/0"}]}`, `{`, ``, `null`,
		`[]`,
	} {
		f.Add([]byte(s))
	}
	path := filepath.Join(f.TempDir(), "record.json")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if e, err := load(path, "c:eth0"); err == nil && e.ID() != "c:eth0" {
			t.Errorf("it is of %q", e.ID())
		}
	})
}

// FuzzCheckID: an ID that CheckID accepts names a file in the records' directory.
func FuzzCheckID(f *testing.F) {
	for _, s := range []string{
		"c:eth0", "../c:eth0", "c:../eth0", ":", "c:", ".:x", "c:e:0", "c\x00:eth0", `c:\eth0`,
		"c",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, id string) {
		if CheckID(id) != nil {
			return
		}
		if filepath.Dir(path(id)) != recordsDir || strings.ContainsRune(id, 0) || filepath.Dir(endingPath(id)) != recordsDir {
			t.Errorf("%q leads to %s", id, path(id))
		}
	})
}
