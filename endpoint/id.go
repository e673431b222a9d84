package endpoint

import (
	"errors"
	"fmt"
	"strings"
)

// CheckID refuses what is no ID, so that no request can name a file elsewhere.
func CheckID(id string) error {
	container, ifName, ok := strings.Cut(id, ":")
	if !ok || container == "" || ifName == "" || strings.ContainsAny(id, "/\\\x00") || strings.Contains(ifName, ":") || strings.HasPrefix(id, ".") {
		return fmt.Errorf("%q is no endpoint ID (CONTAINER:INTERFACE)", id)
	}
	if len(id) > maxID {
		return fmt.Errorf("%.80q: %w: it has %d bytes, and the name of its record holds %d", id, ErrTooLong, len(id), maxID)
	}
	return nil
}

// ErrTooLong says of an ID that no attachment can have it.
var ErrTooLong = errors.New("the endpoint ID is too long")

// maxID is the longest ID in bytes: a file's name has 255 (NAME_MAX), and that of a record which is being deleted has
// the ID and a suffix. A longer one would be attached and never deleted.
const maxID = 255 - len(endingSuffix)

// IDOfFile is the ID of the endpoint whose record has that file name.
func IDOfFile(name string) (id string, ok bool) {
	id, ok = strings.CutSuffix(name, suffix)
	return id, ok && CheckID(id) == nil
}
