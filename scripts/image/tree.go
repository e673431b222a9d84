package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

type tree map[string]file

type file struct {
	mode int64
	data []byte
	link string
}

func (t tree) size() (n int) {
	for _, f := range t {
		n += len(f.data)
	}
	return n
}

func (t tree) glob(pattern string) []string {
	var names []string
	for name := range t {
		if ok, _ := path.Match(pattern, name); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (t tree) follow(name string) ([]string, error) {
	var way []string
	for range 8 {
		f, ok := t[name]
		if !ok {
			return nil, fmt.Errorf("%s is missing", strings.Join(append(way, name), " -> "))
		}
		way = append(way, name)
		if f.link == "" {
			return way, nil
		}
		if path.IsAbs(f.link) {
			name = merged(f.link)
		} else {
			name = merged(path.Join(path.Dir(name), f.link))
		}
	}
	return nil, fmt.Errorf("%s: too many links", strings.Join(way, " -> "))
}

// wanted are the files that the image has from Debian, besides libraries. With etc/protocols, iptables prints
// protocols by the same names as on the node. Scanners of images read os-release.
var wanted = []string{
	"usr/sbin/ip*tables-nft", "usr/sbin/ip*tables-nft-restore", "usr/sbin/ip*tables-nft-save",
	"usr/sbin/ip*tables-legacy", "usr/sbin/ip*tables-legacy-restore", "usr/sbin/ip*tables-legacy-save",
	"usr/lib/*/xtables/libxt_*.so", "usr/lib/*/xtables/libipt_*.so", "usr/lib/*/xtables/libip6t_*.so",
	"etc/protocols", "etc/os-release", "usr/share/common-licenses/*",
}

func choose(packages []pkg) (tree, []pkg, error) {
	all, chosen := tree{}, tree{}
	for _, p := range packages {
		maps.Copy(all, p.files)
	}
	var queue []string
	for _, pattern := range wanted {
		names := all.glob(pattern)
		if len(names) == 0 {
			return nil, nil, fmt.Errorf("no package has a file %s", pattern)
		}
		queue = append(queue, names...)
	}
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		if _, ok := chosen[name]; ok {
			continue
		}
		way, err := all.follow(name)
		if err != nil {
			return nil, nil, err
		}
		for _, n := range way {
			chosen[n] = all[n]
		}
		needed, err := libraries(all, way[len(way)-1])
		if err != nil {
			return nil, nil, err
		}
		queue = append(queue, needed...)
	}
	return withCopyrights(all, chosen, packages)
}

// libraries returns the files that a program or a library loads directly. The loader counts as a library.
func libraries(all tree, name string) ([]string, error) {
	data := all[name].data
	if !bytes.HasPrefix(data, []byte(elf.ELFMAG)) {
		return nil, nil
	}
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	var found []string
	for _, library := range needed {
		at := append(all.glob("usr/lib/*/"+library), all.glob("usr/lib/"+library)...)
		if len(at) == 0 {
			return nil, fmt.Errorf("%s needs %s, which no package has", name, library)
		}
		found = append(found, at...)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		loader := make([]byte, p.Filesz)
		if _, err := p.ReadAt(loader, 0); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		found = append(found, merged(string(bytes.TrimRight(loader, "\x00"))))
	}
	return found, nil
}

func withCopyrights(all, chosen tree, packages []pkg) (tree, []pkg, error) {
	var used []pkg
	for _, p := range packages {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(p.files)),
			func(name string) bool { _, ok := chosen[name]; return ok }) {
			continue
		}
		used = append(used, p)
	}
	for _, p := range used {
		name := "usr/share/doc/" + p.name + "/copyright"
		if doc := all["usr/share/doc/"+p.name]; doc.link != "" { // packages of one source package may share the directory
			name = path.Join("usr/share/doc", doc.link, "copyright")
		}
		way, err := all.follow(name)
		if err != nil {
			return nil, nil, fmt.Errorf("copyright of %s: %w", p.name, err)
		}
		chosen["usr/share/doc/"+p.name+"/copyright"] = all[way[len(way)-1]]
		chosen["var/lib/dpkg/status.d/"+p.name] = file{mode: 0o644, data: []byte(p.control)}
	}
	return chosen, used, nil
}
