//go:build !linux

package dirwatch

import (
	"errors"
	"os"
)

// Watcher can't watch anything, because only Linux has inotify. The type exists so that programs that don't watch
// directories can be built.
type Watcher struct{}

func New(string) (*Watcher, error) { return nil, errors.ErrUnsupported }

func NewTree(string) (*Watcher, error) { return nil, errors.ErrUnsupported }

func (*Watcher) Watch(map[string]bool) error { return errors.ErrUnsupported }

func (*Watcher) Next() (Change, error) { return Change{}, errors.ErrUnsupported }

func (*Watcher) Close() error { return nil }

// ReadFile reads a file. It returns ErrNoFile if the path is no regular file.
func ReadFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, ErrNoFile
	}
	return os.ReadFile(path)
}
