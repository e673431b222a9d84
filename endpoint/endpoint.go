// Package endpoint owns the endpoint records and the node's lock. The plugin writes a record on ADD. A record
// is removed when its attachment ends. The agent and weirctl read records. The files:
//
//   - /run/weir/endpoints/ID.json: the record of an attachment
//   - /run/weir/endpoints/ID.ending: the same record while the attachment is being ended
//   - /run/weir/lock: the node's lock. Its content is the name of the agent's backend (see ReadBackend).
//
// Invariants:
//   - A record is whole: it is written beside the directory and renamed into it.
//   - Records outlive all processes, but not a reboot, which empties /run.
//   - A record that can't be understood is reported (ErrBroken) and never taken for absent.
package endpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/weir-net/weir/conf"
)

const (
	// Dir has weir's runtime state. A reboot empties /run and ends the network namespaces that the state describes.
	Dir = "/run/weir"

	recordsDir   = Dir + "/endpoints"
	suffix       = ".json"
	endingSuffix = ".ending"
	// tempFile is a record that is being written, in a directory that the agent doesn't watch. One name is enough,
	// because only the process that has the node's lock writes records.
	tempFile = Dir + "/endpoint.tmp"
)

// ErrBroken means that a record exists and can't be understood.
var ErrBroken = errors.New("the record is broken")

// Endpoint is the record of one attachment: one interface of one container (CNI specification 1.1,
// "Attachment").
type Endpoint struct {
	ContainerID string           `json:"containerID"`
	IfName      string           `json:"ifName"`
	Network     string           `json:"network"`
	Netns       string           `json:"netns"`
	Pod         Pod              `json:"pod"`
	Addresses   []Address        `json:"addresses"`
	MAC         string           `json:"mac"`
	HostIf      string           `json:"hostInterface"`
	Enforcement conf.Enforcement `json:"enforcement"`
	Created     time.Time        `json:"created"`
	// Chained means that another plugin made the interface. HostIf is then that plugin's link on the node, and
	// HostIndex is the link's index. If they are unknown, HostIf and MAC are empty, and HostIndex is 0.
	Chained   bool `json:"chained,omitempty"`
	HostIndex int  `json:"hostInterfaceIndex,omitempty"`
	// MTU is the configured MTU of the pod's link in bytes. It is 0 if the configuration has none, and nil if
	// the configuration is unknown.
	MTU *int `json:"mtu,omitempty"`
	// BridgeIf is the other plugin's bridge of a chained attachment. It is empty if the link is no port of a
	// bridge.
	BridgeIf string `json:"bridgeInterface,omitempty"`
}

// Pod is the pod that the attachment belongs to. UID is empty if the runtime passed none.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid,omitempty"`
}

func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// Address is one of the pod's addresses, with the subnet that it was assigned from.
type Address struct {
	Addr    netip.Addr   `json:"address"`
	Subnet  netip.Prefix `json:"subnet"`
	Gateway netip.Addr   `json:"gateway"`
}

// ID returns the attachment's ID, which is unique on the node.
func (e *Endpoint) ID() string { return ID(e.ContainerID, e.IfName) }

func ID(containerID, ifName string) string { return containerID + ":" + ifName }

func path(id string) string { return filepath.Join(recordsDir, id+suffix) }

func endingPath(id string) string { return filepath.Join(recordsDir, id+endingSuffix) }

// Save writes the record. After a crash the file has either the whole new record or the whole old one. The
// caller must have the node's lock.
func (e *Endpoint) Save() error {
	making, err := e.Begin()
	if err != nil {
		return err
	}
	_ = making.Close()
	return nil
}

// Begin saves the record and returns a lock on it. Busy returns true until the lock is closed or the process ends. So
// other processes can tell a running ADD from a killed one. The caller must have the node's lock.
func (e *Endpoint) Begin() (making io.Closer, err error) {
	if err := os.MkdirAll(recordsDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of endpoint records: %w", err)
	}
	data, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode endpoint record %s: %w", e.ID(), err)
	}
	if err := os.WriteFile(tempFile, data, 0o600); err != nil {
		return nil, fmt.Errorf("write endpoint record %s: %w", e.ID(), err)
	}
	// The file is opened again, for reading: closing a file that was opened for writing would wake the agent.
	f, err := os.Open(tempFile)
	if err != nil {
		return nil, fmt.Errorf("open endpoint record %s: %w", e.ID(), err)
	}
	if err := flock(f, lockEx); err != nil {
		return nil, errors.Join(fmt.Errorf("lock endpoint record %s: %w", e.ID(), err), f.Close())
	}
	if err := os.Rename(tempFile, path(e.ID())); err != nil {
		return nil, errors.Join(fmt.Errorf("write endpoint record %s: %w", e.ID(), err), f.Close())
	}
	return f, nil
}

// Load reads the record of an attachment that isn't ending. It returns fs.ErrNotExist if there is no record, and
// ErrBroken if the record can't be understood.
func Load(id string) (*Endpoint, error) { return load(path(id), id) }

func load(path, id string) (*Endpoint, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read endpoint record: %w", err)
	}
	e := &Endpoint{}
	if err := json.Unmarshal(data, e); err != nil {
		return nil, fmt.Errorf("endpoint record %s: %w: %w", path, ErrBroken, err)
	}
	if err := CheckID(e.ID()); err != nil {
		return nil, fmt.Errorf("endpoint record %s: %w: %w", path, ErrBroken, err)
	}
	if e.ID() != id { // the file is a copy of another record, and no DEL would remove the copy
		return nil, fmt.Errorf("endpoint record %s: %w: it is of %s", path, ErrBroken, e.ID())
	}
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("endpoint record %s: %w: %w", path, ErrBroken, err)
	}
	return e, nil
}

// check returns an error if the record has a value that the kernel would refuse. A record with an error counts as
// broken (ErrBroken). Otherwise the kernel's refusal would block the changes for all other pods.
func (e *Endpoint) check() error {
	var err error
	if !e.Chained { // weir doesn't use the MAC of other plugins' interfaces
		_, err = net.ParseMAC(e.MAC)
	}
	for _, a := range e.Addresses {
		no := !a.Addr.IsValid() || a.Addr.IsUnspecified() || a.Addr.Zone() != "" || a.Addr.Is4In6()
		if no || !a.Subnet.Contains(a.Addr) || a.Subnet.Bits() == 0 {
			err = errors.Join(err, fmt.Errorf("address %s in %s can't be", a.Addr, a.Subnet))
		}
	}
	return err
}

// BrokenRecords has the error of each record that can't be read, by ID.
type BrokenRecords map[string]error

func (b BrokenRecords) Error() string {
	var all []string
	for _, id := range slices.Sorted(maps.Keys(b)) {
		all = append(all, b[id].Error())
	}
	return strings.Join(all, "; ")
}

// List reads the records of all attachments that aren't ending, in the order of their IDs. If records can't be read,
// List returns the readable ones, and BrokenRecords as the error.
func List() ([]Endpoint, error) { return (&Lister{}).List() }

// WatchDir returns the directory of records, and makes it if it is missing.
func WatchDir() (string, error) {
	if err := os.MkdirAll(recordsDir, 0o700); err != nil {
		return "", fmt.Errorf("make the directory of endpoint records: %w", err)
	}
	return recordsDir, nil
}

// Lock takes the node's lock. A process needs it to write records, assign or release addresses, make the bridge
// or repair node settings. Lock waits without a time limit: processes keep the lock only for a few system
// calls. The kernel releases it when the process ends.
//
// Equivalent to: flock /run/weir/lock COMMAND
func Lock() (unlock func(), err error) {
	return lock(func(f *os.File) error { return flock(f, lockEx) })
}

// LockWithin is Lock with a time limit, for callers that must not wait long.
//
// Equivalent to: flock --timeout LIMIT /run/weir/lock COMMAND
func LockWithin(limit time.Duration) (unlock func(), err error) {
	return lock(func(f *os.File) error {
		every := time.NewTicker(limit / 100) // the system call flock has no timeout
		defer every.Stop()
		for end := time.Now().Add(limit); ; <-every.C {
			err := flock(f, lockEx|lockNb)
			if !errors.Is(err, syscall.EWOULDBLOCK) {
				return err
			}
			if time.Now().After(end) {
				return fmt.Errorf("another process has had the lock for %s (fuser -v %s names it): %w", limit, f.Name(), err)
			}
		}
	})
}

func lock(take func(*os.File) error) (unlock func(), err error) {
	if err := os.MkdirAll(Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make %s: %w", Dir, err)
	}
	for {
		f, err := os.OpenFile(filepath.Join(Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open the lock: %w", err)
		}
		if err := take(f); err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
		}
		inPlace, err := InPlace(f)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("look for the lock: %w", err), f.Close())
		}
		if inPlace {
			return func() { _ = f.Close() }, nil
		}
		_ = f.Close() // another program has removed the file: this lock excludes no other process
	}
}

// InPlace reports whether the path that f was opened with still leads to f. After an error, this is unknown.
//
// Equivalent to: test PATH -ef /proc/self/fd/NUMBER
func InPlace(f *os.File) (bool, error) {
	open, err := f.Stat()
	if err != nil {
		return false, err
	}
	there, err := os.Stat(f.Name())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(open, there), err
}
