package ipam

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
)

// fullDir holds a file for each family's ranges in which the last who asked for an address found none. It goes with the
// first address that is freed, be it of other ranges: who asks next finds out.
const fullDir = endpoint.Dir + "/full"

// Full says whether no address is left in one of the ranges' families. It costs one look, however many are held.
func Full(ranges []conf.Range) (bool, error) {
	for _, family := range byFamily(ranges) {
		_, err := os.Lstat(fullPath(family))
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("look whether addresses are left: %w", err)
		}
	}
	return false, nil
}

func fullPath(family []conf.Range) string {
	return filepath.Join(fullDir, filepath.Base(lastPath(family)))
}

func noteFull(family []conf.Range) error {
	if err := os.MkdirAll(fullDir, 0o700); err != nil {
		return fmt.Errorf("note that no address is left: %w", err)
	}
	if err := os.WriteFile(fullPath(family), nil, 0o600); err != nil {
		return fmt.Errorf("note that no address is left: %w", err)
	}
	return nil
}

// forgetFull comes before an address is freed: a crash between the two costs a look at all addresses, no more.
func forgetFull() error {
	if err := os.RemoveAll(fullDir); err != nil {
		return fmt.Errorf("note that addresses are left: %w", err)
	}
	return nil
}
