package manifests

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// isManifest reports whether the agent reads files of this name: the extension must be .yaml, .yml or .json, in upper
// or lower case. Two kinds of names are refused: those that begin with two dots (kubelet's copies of a ConfigMap), and
// those that begin with .# (locks of editors).
func isManifest(name string) bool {
	base := filepath.Base(name)
	extension := strings.ToLower(filepath.Ext(base))
	return !strings.HasPrefix(base, "..") && !strings.HasPrefix(base, ".#") &&
		slices.Contains([]string{".yaml", ".yml", ".json"}, extension)
}

type tree struct {
	files []string
	dirs  map[string]bool
	errs  map[string]error // errors of directories that can't be read
}

// walk lists the manifests and directories below root. It follows links to directories, because kubelet mounts the
// subdirectories of a ConfigMap as links. It doesn't follow a link to a directory that contains the link. It returns an
// error only if root can't be listed.
//
// Equivalent to: find -L ROOT -name '..?*' -prune -o ! -type d ! -name '.#*' \( -iname '*.yaml' -o -iname '*.yml' -o
// -iname '*.json' \) -print
func walk(root string) (tree, error) {
	t := tree{dirs: map[string]bool{}, errs: map[string]error{}}
	err := t.walk(root, ".", nil)
	if err != nil {
		return t, fmt.Errorf("read the directory of manifests: %w", err)
	}
	slices.Sort(t.files)
	return t, nil
}

func (t *tree) walk(root, dir string, above []os.FileInfo) error {
	path := filepath.Join(root, dir)
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(above, func(o os.FileInfo) bool { return os.SameFile(o, info) }) {
		return nil
	}
	above = append(slices.Clip(above), info)
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		isDir := e.IsDir()
		if e.Type()&fs.ModeSymlink != 0 {
			info, err := os.Stat(filepath.Join(root, name))
			isDir = err == nil && info.IsDir()
		}
		switch {
		case isDir && !strings.HasPrefix(e.Name(), ".."):
			t.dirs[name] = true
			if err := t.walk(root, name, above); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.errs[name] = err
			}
		case !isDir && isManifest(name):
			t.files = append(t.files, name)
		}
	}
	return nil
}
