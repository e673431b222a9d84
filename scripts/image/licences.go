package main

import (
	"debug/buildinfo"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func addLicences(t tree, repository string) error {
	modules := map[string]bool{}
	for _, name := range programs {
		info, err := buildinfo.ReadFile(filepath.Join(repository, "bin", name))
		if err != nil {
			return fmt.Errorf("licences: %w", err)
		}
		for _, m := range info.Deps {
			modules[m.Path] = true
		}
	}
	goroot, err := output(repository, "go", "env", "GOROOT")
	if err != nil {
		return err
	}
	list := append([]string{"list", "-m", "-f", "{{.Path}}\t{{.Dir}}"}, slices.Sorted(maps.Keys(modules))...)
	listed, err := output(repository, "go", list...)
	if err != nil {
		return err
	}
	dirs := map[string]string{"": repository, "go": goroot}
	for line := range strings.Lines(listed) {
		module, dir, _ := strings.Cut(strings.TrimSpace(line), "\t")
		if dir == "" {
			return fmt.Errorf("licences: the module %s is not in Go's module cache (go mod download fetches it)", module)
		}
		dirs["modules/"+module] = dir
	}
	for to, dir := range dirs {
		if err := copyLicences(t, filepath.Join("usr/share/doc/weir", to), dir); err != nil {
			return err
		}
	}
	return nil
}

func copyLicences(t tree, to, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("licences: %w", err)
	}
	found := false
	for _, e := range entries {
		name := strings.ToUpper(e.Name())
		isLicence := slices.ContainsFunc([]string{"LICENSE", "LICENCE", "COPYING", "NOTICE", "PATENTS"},
			func(p string) bool { return strings.HasPrefix(name, p) })
		if !isLicence || !e.Type().IsRegular() {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return fmt.Errorf("licences: %w", err)
		}
		t[filepath.Join(to, e.Name())] = file{mode: 0o644, data: data}
		found = true
	}
	if !found {
		return fmt.Errorf("licences: %s has none", dir)
	}
	return nil
}
