package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// directories are the image's empty directories. /run is among them as the parent of run/weir: the lock that iptables
// shares with the node is in /run.
var directories = []string{
	"dev", "proc", "sys", "run/weir", "usr/lib64", "host/opt/cni/bin", "host/etc/cni/net.d",
}

// links point into /usr, as in a current Debian.
var links = map[string]string{"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}

// checkName requires a registry in the image's name. Without a registry, each container runtime would add its own
// default.
func checkName(s string) error {
	_, err := name.NewTag(s, name.StrictValidation)
	if registry, _, ok := strings.Cut(s, "/"); err == nil && (!ok || !strings.ContainsAny(registry, ".:")) {
		err = errors.New("it has no registry")
	}
	if err != nil {
		return fmt.Errorf("the image's name %q must be REGISTRY/NAME:TAG: %w", s, err)
	}
	return nil
}

func assemble(created time.Time, labels map[string]string, trees ...tree) (v1.Image, error) {
	trees[0] = maps.Clone(trees[0])
	for name, to := range links {
		trees[0][name] = file{link: to}
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.ConfigFile(img, &v1.ConfigFile{
		OS: "linux", Architecture: runtime.GOARCH, Created: v1.Time{Time: created},
		Config: v1.Config{
			Entrypoint: []string{"/usr/bin/weir-agent"},
			Env:        []string{"PATH=/usr/sbin:/usr/bin"},
			WorkingDir: "/",
			Labels:     labels,
		},
		RootFS: v1.RootFS{Type: "layers"},
	})
	if err != nil {
		return nil, err
	}
	for i, t := range trees {
		var dirs []string
		if i == 0 {
			dirs = directories
		}
		data, err := layer(t, dirs)
		if err != nil {
			return nil, err
		}
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
			tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return nil, err
		}
		if img, err = mutate.Append(img, mutate.Addendum{Layer: l, History: v1.History{
			Created: v1.Time{Time: created}, CreatedBy: []string{"iptables", "weir"}[i],
		}}); err != nil {
			return nil, err
		}
	}
	return img, nil
}

// layer writes the tree as a tar. The same tree gives the same bytes: all files belong to root and date from 1970.
func layer(t tree, dirs []string) ([]byte, error) {
	entries := map[string]tar.Header{}
	add := func(dir string) {
		for ; dir != "."; dir = path.Dir(dir) {
			entries[dir] = tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}
		}
	}
	for _, dir := range dirs {
		add(dir)
	}
	for name, f := range t {
		add(path.Dir(name))
		entries[name] = tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: f.mode & 0o777, Size: int64(len(f.data))}
		if f.link != "" {
			entries[name] = tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: f.link, Mode: 0o777}
		}
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		h := entries[name]
		h.ModTime = time.Unix(0, 0)
		if err := w.WriteHeader(&h); err != nil {
			return nil, err
		}
		if _, err := w.Write(t[name].data); err != nil {
			return nil, err
		}
	}
	err := w.Close() // Close writes the end of the archive
	return b.Bytes(), err
}

// write writes a tar file in the OCI layout. "docker load" can read the file too. containerd takes the image's name
// from io.containerd.image.name.
func write(img v1.Image, name, output string) (v1.Hash, error) {
	digest, err := img.Digest()
	if err != nil {
		return digest, err
	}
	config, err := img.ConfigName()
	if err != nil {
		return digest, err
	}
	files, layers, err := blobs(img)
	if err != nil {
		return digest, err
	}
	for at, v := range map[string]any{
		"oci-layout": map[string]string{"imageLayoutVersion": "1.0.0"},
		"index.json": v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{{
			MediaType: types.OCIManifestSchema1, Digest: digest, Size: int64(len(files[blob(digest)].data)),
			Platform:    &v1.Platform{OS: "linux", Architecture: runtime.GOARCH},
			Annotations: map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name},
		}}},
		"manifest.json": []any{map[string]any{"Config": blob(config), "RepoTags": []string{name}, "Layers": layers}},
	} {
		data, err := json.Marshal(v)
		if err != nil {
			return digest, err
		}
		files[at] = file{mode: 0o644, data: data}
	}
	data, err := layer(files, nil)
	if err != nil {
		return digest, err
	}
	tmp := filepath.Join(filepath.Dir(output), "."+filepath.Base(output))
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return digest, fmt.Errorf("write the image: %w", err)
	}
	if err := os.Rename(tmp, output); err != nil {
		return digest, fmt.Errorf("write the image: %w", err)
	}
	return digest, nil
}

func blobs(img v1.Image) (files tree, layers []string, err error) {
	files = tree{}
	add := func(hash func() (v1.Hash, error), read func() ([]byte, error)) error {
		h, err := hash()
		if err != nil {
			return err
		}
		data, err := read()
		files[blob(h)] = file{mode: 0o644, data: data}
		return err
	}
	if err := errors.Join(add(img.Digest, img.RawManifest), add(img.ConfigName, img.RawConfigFile)); err != nil {
		return nil, nil, err
	}
	all, err := img.Layers()
	if err != nil {
		return nil, nil, err
	}
	for _, l := range all {
		h, err := l.Digest()
		if err != nil {
			return nil, nil, err
		}
		layers = append(layers, blob(h))
		if err := add(l.Digest, func() ([]byte, error) {
			r, err := l.Compressed()
			if err != nil {
				return nil, err
			}
			defer func() { _ = r.Close() }()
			return io.ReadAll(r)
		}); err != nil {
			return nil, nil, err
		}
	}
	return files, layers, nil
}

func blob(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }
