package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// TestRulesHaveTheirExtensions: if a golden file's rule needs an extension, check requires it.
func TestRulesHaveTheirExtensions(t *testing.T) {
	files, err := filepath.Glob("../../netfilter/iptables/testdata/*.rules")
	if err != nil || len(files) == 0 {
		t.Fatalf("golden files: %v, %v", files, err)
	}
	used := regexp.MustCompile(`-m ([a-z0-9]+)|-j ([A-Z]+) --`)
	found := map[string]bool{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range used.FindAllStringSubmatch(string(data), -1) {
			found[m[1]+m[2]] = true
		}
	}
	if len(found) < 8 {
		t.Fatalf("the rules use only %v: are they still read?", found)
	}
	for name := range found {
		if !slices.Contains(slices.Concat(matches, matches6, targets), name) {
			t.Errorf("the agent's rules use %s, and the image isn't checked for it", name)
		}
	}
}

func complete(t *testing.T) tree {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	all := tree{"usr/sbin/xtables-multi": {mode: 0o755, data: self}}
	for _, name := range programs {
		all["usr/bin/"+name] = file{mode: 0o755, data: self}
	}
	needed, err := libraries(tree{"self": {data: self}, "usr/lib/x/libc.so.6": {}}, "self")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range needed { // the list is empty if the test binary is static
		all[name] = file{mode: 0o755}
	}
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, flavour := range []string{"nft", "legacy"} {
			for _, verb := range []string{"", "-save", "-restore"} {
				all["usr/sbin/"+family+"-"+flavour+verb] = file{link: "xtables-multi"}
			}
		}
	}
	for _, name := range slices.Concat(matches, matches6, targets) {
		all["usr/lib/x/xtables/libxt_"+name+".so"] = file{mode: 0o644}
	}
	return all
}

func TestCheckMissesEachFile(t *testing.T) {
	all := complete(t)
	if err := check(all); err != nil {
		t.Fatalf("complete, and yet: %v", err)
	}
	for name := range all {
		without := maps.Clone(all)
		delete(without, name)
		if err := check(without); err == nil {
			t.Errorf("%s is missing, and nobody notices", name)
		}
	}
	plain := maps.Clone(all)
	plain["usr/bin/weirctl"] = file{mode: 0o644, data: all["usr/bin/weirctl"].data}
	if err := check(plain); err == nil {
		t.Error("weirctl can't be executed, and nobody notices")
	}
}

func TestExtensionsOfOneFamily(t *testing.T) {
	all := complete(t)
	delete(all, "usr/lib/x/xtables/libxt_MASQUERADE.so")
	all["usr/lib/x/xtables/libipt_MASQUERADE.so"] = file{}
	if err := check(all); err == nil || !strings.Contains(err.Error(), "MASQUERADE of ip6tables") {
		t.Errorf("ip6tables has no MASQUERADE: %v", err)
	}
	all["usr/lib/x/xtables/libip6t_MASQUERADE.so"] = file{}
	if err := check(all); err != nil {
		t.Errorf("each family has its own: %v", err)
	}
}

func TestParseDepends(t *testing.T) {
	got := parseDepends(
		"iptables\n  Depends: libc6\n |Depends: libfoo1\n    libfoo2\n  Depends: <libbar>\nlibc6\n  PreDepends: x\n" +
			"<libbar>\nlibc6:i386\nlibxtables12t64\n")
	if want := []string{"iptables", "libc6", "libxtables12t64"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestMerged(t *testing.T) {
	for in, want := range map[string]string{
		"./lib/x/libc.so.6": "usr/lib/x/libc.so.6", "/lib64/ld.so": "usr/lib64/ld.so", "./usr/lib/a": "usr/lib/a",
		"./etc/protocols": "etc/protocols", "library/x": "library/x", "../../etc/passwd": "etc/passwd",
	} {
		if got := merged(in); got != want {
			t.Errorf("%s leads to %s, want %s", in, got, want)
		}
	}
}

func TestFollow(t *testing.T) {
	all := tree{
		"usr/lib64/ld.so": {link: "/lib/x/ld-2.so"}, "usr/lib/x/ld-2.so": {link: "ld-3.so"}, "usr/lib/x/ld-3.so": {},
		"loop": {link: "loop"}, "dangling": {link: "nothing"},
	}
	if way, err := all.follow("usr/lib64/ld.so"); err != nil ||
		!slices.Equal(way, []string{"usr/lib64/ld.so", "usr/lib/x/ld-2.so", "usr/lib/x/ld-3.so"}) {
		t.Errorf("got %q, %v", way, err)
	}
	for _, name := range []string{"loop", "dangling", "absent"} {
		if way, err := all.follow(name); err == nil {
			t.Errorf("%s leads to %q", name, way)
		}
	}
}

func TestCheckName(t *testing.T) {
	for name, want := range map[string]bool{
		"weir.local/weir:dev": true, "registry.example:5000/a/weir:v1": true, "docker.io/a/weir:1": true,
		"index.docker.io/a/weir:1": true,
		"weir":                     false, "weir:dev": false, "a/weir:dev": false, "weir.local/weir": false,
		"weir.local/Weir:dev": false, "": false,
	} {
		if err := checkName(name); (err == nil) != want {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestWrite: an image is written twice, and the files are equal. The file is an OCI layout, and has what "docker
// load" needs.
func TestWrite(t *testing.T) {
	made := func() (string, string) {
		img, err := assemble(time.Unix(1e9, 0).UTC(), map[string]string{"a": "b"},
			tree{"etc/x": {mode: 0o644, data: []byte("x")}},
			tree{"usr/bin/y": {mode: 0o755, data: []byte("y")}, "usr/bin/z": {link: "y"}})
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "image.tar")
		digest, err := write(img, "weir.local/weir:test", path)
		if err != nil {
			t.Fatal(err)
		}
		return path, digest.String()
	}
	path, digest := made()
	again, _ := made()
	one, _ := os.ReadFile(path)
	two, _ := os.ReadFile(again)
	if len(one) == 0 || !bytes.Equal(one, two) {
		t.Error("the same image was written in two ways")
	}
	dir := unpack(t, one)
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Manifests[0]; got.Digest.String() != digest ||
		got.Annotations["io.containerd.image.name"] != "weir.local/weir:test" {
		t.Errorf("the index has %+v", got)
	}
	img, err := index.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 2 {
		t.Fatalf("layers: %v, %v", layers, err)
	}
	data, err := layers[1].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	content, err := readTar(data)
	if err != nil || string(content["usr/bin/y"].data) != "y" || content["usr/bin/y"].mode != 0o755 ||
		content["usr/bin/z"].link != "y" {
		t.Errorf("the last layer has %v, %v", content, err)
	}
	var docker []struct {
		Config           string
		RepoTags, Layers []string
	}
	saved, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(saved, &docker); err != nil || len(docker) != 1 ||
		!slices.Equal(docker[0].RepoTags, []string{"weir.local/weir:test"}) {
		t.Fatalf("docker's manifest: %s, %v", saved, err)
	}
	for _, name := range append(docker[0].Layers, docker[0].Config) {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

// unpack also checks for the archive's end marker: some programs need it, and Go's reader doesn't.
func unpack(t *testing.T, data []byte) string {
	t.Helper()
	if !bytes.HasSuffix(data, make([]byte, 1024)) {
		t.Error("the archive has no end")
	}
	dir := t.TempDir()
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(filepath.Join(dir, h.Name), 0o755)
		} else {
			var b []byte
			if b, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(filepath.Join(dir, h.Name), b, 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
