package conntrack

import (
	"bytes"
	"errors"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/batch"
)

type Operation int

// Cut sets the conntrack label that marks a connection as cut. Restore clears this label. Forget deletes the entry.
const (
	Cut Operation = iota
	Restore
	Forget
)

type Edit struct {
	Connection
	Operation
}

// NewEdit returns an Edit of the connection. The Edit stays valid when All yields the next connection.
func NewEdit(c Connection, o Operation) Edit {
	c.tuple = bytes.Clone(c.tuple)
	return Edit{c, o}
}

// Apply makes the edits with one system call. If an edit fails, Apply repeats each edit with a call of its own, and
// returns an error or nil for each edit. If all edits succeed, Apply returns nil. It is no error if an entry is gone.
func Apply(edits []Edit) []error {
	var b batch.Batch
	for _, e := range edits {
		req := request(e.kernelOperation(), 0, e.family)
		for _, a := range append(e.key(), e.attributes()...) {
			req.AddData(a)
		}
		b.Add(req, "edit an entry").MapError = batch.MapError(unix.ENOENT, nil)
	}
	if _, err := b.Do(unix.NETLINK_NETFILTER, netns.None()); err == nil {
		return nil
	}
	errs := make([]error, len(edits))
	for i, e := range edits {
		errs[i] = e.apply()
	}
	return errs
}

// apply makes the edit. If no rule used labels when the connection began, its entry has no room for a label. To cut
// such a connection, apply deletes the entry and makes it again with room.
func (e Edit) apply() error {
	attrs := e.attributes()
	err := e.send(e.kernelOperation(), attrs...)
	if e.Operation == Cut && errors.Is(err, unix.ENOSPC) {
		err = e.recreate(attrs...)
	}
	if errors.Is(err, unix.ENOENT) { // the entry is gone
		return nil
	}
	return err
}

func (e Edit) kernelOperation() int {
	if e.Operation == Forget {
		return nl.IPCTNL_MSG_CT_DELETE
	}
	return nl.IPCTNL_MSG_CT_NEW
}

// attributes returns the attributes that follow the entry's key in the request. A request to delete contains the
// entry's ID, so that the kernel deletes no later entry with the same key.
//
// Equivalent to: conntrack -U KEY --label-add 127 (or --label-del); conntrack -D KEY, if the entry has the ID
func (e Edit) attributes() []*nl.RtAttr {
	if e.Operation == Forget {
		return []*nl.RtAttr{nl.NewRtAttr(nl.CTA_ID, e.id[:])}
	}
	mask := make([]byte, labelBytes)
	mask[conf.CutLabel/8] |= 1 << (conf.CutLabel % 8)
	value := make([]byte, labelBytes)
	if e.Operation == Cut {
		copy(value, mask)
	}
	return []*nl.RtAttr{nl.NewRtAttr(ctaLabels, value), nl.NewRtAttr(ctaLabelsMask, mask)}
}
