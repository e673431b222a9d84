package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

type pkg struct {
	name, version string
	control       string // the package's control fields, as in dpkg's status file
	files         tree
}

func versions(packages []pkg) []string {
	var all []string
	for _, p := range packages {
		all = append(all, p.name+"="+p.version)
	}
	return all
}

// fetch downloads the packages and all that they depend on. apt chooses the versions and checks the signatures.
//
// Equivalent to:
//
//	apt-get download $(apt-cache depends --recurse --no-recommends … NAME… | grep '^[^ <:]*$' | sort -u)
func fetch(names ...string) ([]pkg, error) {
	dir, err := os.MkdirTemp("", "weir-image-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	depends, err := output(dir, "apt-cache", append([]string{
		"depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces",
		"--no-enhances",
	}, names...)...)
	if err != nil {
		return nil, fmt.Errorf("%w\n(this needs apt, of Debian or Ubuntu, and its index: apt-get update)", err)
	}
	get := []string{"download", "--yes", "-o", "APT::Get::AllowUnauthenticated=false", "-o", "Acquire::Retries=3"}
	if os.Getuid() == 0 {
		get = append(get, "-o", "APT::Sandbox::User=root") // only root may write to the directory
	}
	if _, err := output(dir, "apt-get", append(get, parseDepends(depends)...)...); err != nil {
		return nil, fmt.Errorf("%w\n(is apt's index old? apt-get update renews it)", err)
	}
	debs, err := filepath.Glob(dir + "/*.deb")
	if err != nil {
		return nil, err
	}
	slices.Sort(debs)
	packages := make([]pkg, len(debs))
	for i, deb := range debs {
		if packages[i], err = open(deb); err != nil {
			return nil, err
		}
	}
	return packages, nil
}

// parseDepends returns the packages in the output of apt-cache depends. It leaves out <virtual> packages, which
// can't be downloaded, and packages of another architecture (NAME:ARCHITECTURE).
func parseDepends(out string) []string {
	var names []string
	for line := range strings.Lines(out) {
		name := strings.TrimSpace(line)
		if name != "" && name[0] != '<' && !strings.HasPrefix(line, " ") && !strings.Contains(name, ":") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// open reads the package into memory.
//
// Equivalent to: dpkg-deb --field DEB; dpkg-deb --fsys-tarfile DEB | tar -x
func open(deb string) (pkg, error) {
	control, err := output("", "dpkg-deb", "--field", deb)
	if err != nil {
		return pkg{}, err
	}
	p := pkg{control: control + "\n"}
	for line := range strings.Lines(control) {
		if v, ok := strings.CutPrefix(line, "Package: "); ok {
			p.name = strings.TrimSpace(v)
		}
		if v, ok := strings.CutPrefix(line, "Version: "); ok {
			p.version = strings.TrimSpace(v)
		}
	}
	cmd := exec.Command("dpkg-deb", "--fsys-tarfile", deb)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return pkg{}, fmt.Errorf("unpack %s: %w: %s", filepath.Base(deb), err, errOut.String())
	}
	if p.files, err = readTar(&out); err != nil {
		return pkg{}, fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
	}
	return p, nil
}

// readTar returns the archive's files. A hard link becomes a copy of its file.
func readTar(r io.Reader) (tree, error) {
	t := tree{}
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, err
		}
		name := merged(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			data, err := io.ReadAll(archive)
			if err != nil {
				return nil, err
			}
			t[name] = file{mode: h.Mode, data: data}
		case tar.TypeSymlink:
			t[name] = file{link: h.Linkname}
		case tar.TypeLink:
			t[name] = t[merged(h.Linkname)]
		}
	}
}

// merged puts usr/ before a path in bin, lib and the like, because these are links into /usr in the image.
func merged(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	for _, dir := range []string{"bin/", "sbin/", "lib/", "lib32/", "lib64/", "libx32/"} {
		if strings.HasPrefix(name, dir) {
			return "usr/" + name
		}
	}
	return name
}
