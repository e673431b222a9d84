package attachment

import (
	"errors"
	"fmt"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func openNetns(path string) (netns.NsHandle, error) {
	if err := ns.IsNSorErr(path); err != nil {
		return netns.None(), &NetnsError{path, err}
	}
	fd, err := netns.GetFromPath(path)
	if err != nil {
		return netns.None(), &NetnsError{path, err}
	}
	kind, err := unix.IoctlRetInt(int(fd), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		err = errors.Join(fmt.Errorf("it is a namespace of kind %#x", kind), err, fd.Close())
		return netns.None(), &NetnsError{path, err}
	}
	own, err := netns.Get()
	if err != nil {
		return netns.None(), &StepError{"open the node's network namespace", errors.Join(err, fd.Close())}
	}
	defer func() { _ = own.Close() }()
	if fd.Equal(own) {
		return netns.None(), &NetnsError{path, errors.Join(errors.New("it is the node's own"), fd.Close())}
	}
	return fd, nil
}
