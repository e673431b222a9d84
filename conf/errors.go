package conf

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Error says what is wrong with the network configuration or the variables of a CNI call. The plugin chooses the
// error's CNI code by Kind.
type Error struct {
	Kind    ErrorKind
	Message string // begins with the name of the wrong key or variable, if there is one
	Details string // a reason or an example; may be empty
}

func (e *Error) Error() string {
	if e.Details == "" {
		return e.Message
	}
	return e.Message + "; " + e.Details
}

type ErrorKind uint8

const (
	// NotDecoded means that the configuration or prevResult can't be read.
	NotDecoded ErrorKind = iota
	UnknownKey
	// WrongValue means that a key is missing, or that its value is wrong.
	WrongValue
	// WrongVariable means that CNI_ARGS has a wrong value, or lacks a needed value.
	WrongVariable
)

// maxQuoted is the largest number of bytes that an error quotes of a value.
const maxQuoted = 80

func keyError(kind ErrorKind, key, value, why string) error {
	if len(value) > maxQuoted {
		value = strings.ToValidUTF8(value[:maxQuoted], "") + "…" // without a character that is cut in two
	}
	return &Error{Kind: kind, Message: fmt.Sprintf("%s: %s %s", key, value, why)}
}

func invalid(key, value, why string) error { return keyError(WrongValue, key, value, why) }

func missing(key, details string) error {
	return &Error{Kind: WrongValue, Message: key + " is missing", Details: details}
}

func invalidArgs(format string, args ...any) error {
	return &Error{Kind: WrongVariable, Message: "CNI_ARGS: " + fmt.Sprintf(format, args...)}
}

func notDecoded(message string, err error) error {
	return &Error{Kind: NotDecoded, Message: message, Details: err.Error()}
}

func decodeError(raw map[string]json.RawMessage, err error) error {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		key := strings.TrimPrefix(wrong.Field, "NetConf.") // the embedded struct's name comes first
		top, _, _ := strings.Cut(key, ".")
		return invalid(key, string(raw[top]), "must be of type "+wrong.Type.String())
	}
	return notDecoded("the network configuration can't be read", err)
}
