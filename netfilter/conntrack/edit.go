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

// Cut sets the cut bit, Restore clears the cut bit, and Forget deletes the entry.
const (
	Cut Operation = iota
	Restore
	Forget
)

type Edit struct {
	Connection
	Operation
}

// NewEdit returns an Edit that stays valid when the next connection is yielded.
func NewEdit(c Connection, o Operation) Edit {
	c.tuple = bytes.Clone(c.tuple)
	return Edit{c, o}
}

// Apply makes the edits with one system call. If one of them fails, Apply makes each edit with a call of its own, and
// returns an error or nil for each. It returns no list if the first call succeeds. An edit of an entry that is gone
// succeeds.
func Apply(edits []Edit) []error {
	var b batch.Batch
	for _, e := range edits {
		req := request(e.kernelOperation(), 0, e.family)
		for _, a := range e.attributes() {
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

// apply makes the edit. If no rule used labels when the connection began, the entry has no room for the cut bit. To
// cut such an entry, apply deletes it and makes it again.
func (e Edit) apply() error {
	attrs := e.attributes()
	err := e.send(e.kernelOperation(), attrs[1:]...)
	if e.Operation == Cut && errors.Is(err, unix.ENOSPC) {
		err = e.recreate(attrs[1:]...)
	}
	if errors.Is(err, unix.ENOENT) { // the connection has ended
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

// attributes returns the request's attributes. For Forget they include the entry's ID, so that no later entry with
// the same tuple is deleted.
//
// Equivalent to: conntrack -U TUPLE --label-add 127 (or --label-del); conntrack -D TUPLE, if the entry has the ID
func (e Edit) attributes() []*nl.RtAttr {
	attrs := []*nl.RtAttr{nl.NewRtAttr(nl.CTA_TUPLE_ORIG|unix.NLA_F_NESTED, e.tuple)}
	if e.Operation == Forget {
		return append(attrs, nl.NewRtAttr(nl.CTA_ID, e.id[:]))
	}
	mask := make([]byte, labelBytes)
	mask[conf.CutLabel/8] |= 1 << (conf.CutLabel % 8)
	value := make([]byte, labelBytes)
	if e.Operation == Cut {
		copy(value, mask)
	}
	return append(attrs, nl.NewRtAttr(ctaLabels, value), nl.NewRtAttr(ctaLabelsMask, mask))
}
