package endpoint

import (
	"errors"
	"fmt"
	"strings"
)

// PartsOfID returns the two parts of which the function ID has made the ID.
func PartsOfID(id string) (containerID, ifName string) {
	containerID, ifName, _ = strings.Cut(id, ":")
	return containerID, ifName
}

// CheckID returns an error if id can't be an attachment's ID. An accepted ID names no file outside of the records'
// directory. The error wraps ErrTooLong if the ID is too long for a file name.
func CheckID(id string) error {
	container, ifName := PartsOfID(id)
	if container == "" || ifName == "" || strings.Contains(ifName, ":") ||
		strings.ContainsAny(id, "/\\\x00") || strings.HasPrefix(id, ".") {
		return fmt.Errorf("%q is no endpoint ID (CONTAINER:INTERFACE)", id)
	}
	if len(id) > maxID {
		return fmt.Errorf("%.80q: %w: it has %d bytes, and a record's name can have %d", id, ErrTooLong, len(id), maxID)
	}
	return nil
}

// ErrTooLong means that an ID has more than maxID bytes.
var ErrTooLong = errors.New("the endpoint ID is too long")

// maxID is the length of the longest ID in bytes. A file's name has at most 255 bytes (NAME_MAX), endingSuffix
// included.
const maxID = 255 - len(endingSuffix)

// IDOfFile returns the ID of the attachment whose record has this file name. ok is false for all other names, also
// for the names of records of ending attachments.
func IDOfFile(name string) (id string, ok bool) {
	id, ok = strings.CutSuffix(name, suffix)
	return id, ok && CheckID(id) == nil
}
