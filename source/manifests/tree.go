package manifests

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// isManifest reports whether kubectl would read a file of that name; the case of the extension's letters doesn't
// matter. Names that begin with two dots are kubelet's: the versions of a mounted ConfigMap, to which its files are
// links. Names that begin with .# are links by which editors lock a file; they lead nowhere.
func isManifest(name string) bool {
	base := filepath.Base(name)
	extension := strings.ToLower(filepath.Ext(base))
	return !strings.HasPrefix(base, "..") && !strings.HasPrefix(base, ".#") &&
		slices.Contains([]string{".yaml", ".yml", ".json"}, extension)
}

// tree is the content of a directory and of those below it.
type tree struct {
	files []string         // those that may be manifests, by their paths below the directory
	dirs  map[string]bool  // those below the directory
	errs  map[string]error // directories that can't be read
}

// walk lists the tree. It follows links to directories, as kubelet mounts a ConfigMap's subdirectories as links, unless
// a link leads back to a directory above.
//
// Equivalent to: find -L ROOT -iname '*.yaml' -o -iname '*.yml' -o -iname '*.json'
func walk(root string) (tree, error) {
	t := tree{dirs: map[string]bool{}, errs: map[string]error{}}
	err := t.walk(root, ".", nil)
	if err != nil {
		return t, fmt.Errorf("read the directory of manifests: %w", err)
	}
	slices.Sort(t.files)
	return t, nil
}

// inode identifies a directory.
type inode struct{ dev, ino uint64 }

func (t *tree) walk(root, dir string, above []inode) error {
	path := filepath.Join(root, dir)
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: no inode", path)
	}
	here := inode{stat.Dev, stat.Ino}
	if slices.Contains(above, here) {
		return nil
	}
	above = append(slices.Clip(above), here)
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
