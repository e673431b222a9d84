package nftnl

import (
	"errors"
	"net/netip"
	"slices"

	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/netfilter/batch"

	netattrs "github.com/weir-net/weir/internal/attrs"
)

// Question asks for the element of Set that has the key of Element. In a set of networks, it asks for the network that
// contains the address.
type Question struct {
	Table Table
	Set   Set
	Element
}

// questionsEach is how many questions one system call asks. The socket's buffer must have room for the answers.
const questionsEach = 128

// Find returns the element for each question, in order. If the element or the set doesn't exist, the result is nil.
//
// Equivalent to: nft get element FAMILY TABLE SET { KEY }, for each question
func (r *Reader) Find(questions []Question) ([]*Element, error) {
	found := make([]*Element, 0, len(questions))
	for some := range slices.Chunk(questions, questionsEach) {
		var b batch.Batch
		has := make([]bool, len(some))
		for i, q := range some {
			has[i] = true
			key := attrs{}.put(unix.NFTA_SET_ELEM_KEY, value(q.Set.Layout.keyOf(q.Element)))
			a := attrs{}.text(unix.NFTA_SET_ELEM_LIST_TABLE, q.Table.Name).text(unix.NFTA_SET_ELEM_LIST_SET, q.Set.Name).
				put(unix.NFTA_SET_ELEM_LIST_ELEMENTS, attrs{}.put(unix.NFTA_LIST_ELEM, key))
			step := b.Add(request(unix.NFT_MSG_GETSETELEM, 0, q.Table, a), "look up an element of set %s", q.Set.Name)
			step.MapError = func(err error) error {
				if errors.Is(err, unix.ENOENT) {
					has[i], err = false, nil
				}
				return err
			}
		}
		replies, err := r.dumper.Do(b)
		if err != nil {
			return nil, err
		}
		for i, q := range some {
			if !has[i] {
				found = append(found, nil)
				continue
			}
			if len(replies) == 0 {
				return nil, q.unknown(batch.ErrNoAnswer)
			}
			e, err := q.answer(replies[0])
			if err != nil {
				return nil, err
			}
			found, replies = append(found, e), replies[1:]
		}
	}
	return found, nil
}

// Find answers the questions like Reader.Find, over a socket of its own.
func Find(questions []Question) ([]*Element, error) {
	r := NewReader()
	defer r.Close()
	return r.Find(questions)
}

// answer returns the element in the kernel's reply. If the reply has no valid element, answer returns an error: the
// element is unknown, and doesn't count as absent. For an absent element, the kernel would send an error.
func (q Question) answer(reply []byte) (*Element, error) {
	for kind, list := range netattrs.In(reply[min(sizeofGenmsg, len(reply)):]) {
		if kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			continue
		}
		for _, one := range netattrs.In(list) {
			if e, last, ok := q.Set.Layout.element(q.Table.Family, one); ok && !last {
				return &e, nil
			}
		}
	}
	return nil, q.unknown(errors.New("the kernel's answer can't be understood"))
}

func (q Question) unknown(err error) error {
	return wrap(err, "look up an element of set %s", q.Set.Name)
}

// between returns a network. Its first address is the parameter first, and the parameter behind is the address after
// its last one. If behind is the zero value, the network ends with the last of all addresses. ok is false if there is
// no such network.
func between(first, behind netip.Addr) (p netip.Prefix, ok bool) {
	last := netipx.PrefixLastIP(netip.PrefixFrom(first, 0))
	if behind.IsValid() {
		last = behind.Prev()
	}
	return netipx.IPRangeFrom(first, last).Prefix()
}
