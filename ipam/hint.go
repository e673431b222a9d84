package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math/bits"
	"net/netip"
	"os"
	"path/filepath"

	"go4.org/netipx"

	"github.com/weir-net/weir/endpoint"
)

const (
	// mapsDir holds the bitmaps: a file for each block of addresses of which one is or was held, named by its first address.
	mapsDir = endpoint.Dir + "/addresses.maps"
	// madeFile there is from when they were made from the links.
	madeFile = "made"

	blockBits  = 15
	blockSize  = 1 << blockBits // addresses: a file of 4 KiB
	blockBytes = blockSize / 8
)

// hint says where to look for a free address without a look at every held one: a bit for each address, set if it is held.
//
// A link is made before its bit is set, and a bit cleared before its link is removed, so whatever is killed between the
// two leaves a held address whose bit is clear: it is found to be held when it is picked (next), and the bit set. The other
// way round, a free address whose bit is set, would be lost. No crash brings it about, but somebody's rm in the
// directory of links may, or a damaged file. So when no address is free, and the directory has changed since the bitmaps
// were made, they are made anew. What can't be written is deleted as a whole, and made anew by the next ADD.
type hint struct {
	readOnly bool // by who doesn't hold the lock
}

// ensure makes the bitmaps if they aren't there.
func (h hint) ensure() error {
	if _, err := os.Lstat(mapsDir); err == nil {
		return nil
	}
	return h.rebuild()
}

// block is the row of addresses with all but the last 15 bits in common.
func block(a netip.Addr) netip.Prefix {
	return netip.PrefixFrom(a, a.BitLen()-blockBits).Masked()
}

func blockPath(p netip.Prefix) string { return filepath.Join(mapsDir, p.Addr().String()) }

// index of the address in its block.
func index(a netip.Addr) int {
	b := a.AsSlice()
	return int(binary.BigEndian.Uint16(b[len(b)-2:])) & (blockSize - 1)
}

// at is the address with that index in the block.
func at(p netip.Prefix, i int) netip.Addr {
	b := p.Addr().AsSlice()
	end := b[len(b)-2:]
	binary.BigEndian.PutUint16(end, binary.BigEndian.Uint16(end)|uint16(i))
	a, _ := netip.AddrFromSlice(b)
	return a
}

// free are the addresses of the range whose bits are clear, in order. A block is read once, and a block that isn't there
// has none that is held.
func (hint) free(r netipx.IPRange) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for from := r.From(); from.IsValid() && !r.To().Less(from); {
			b := block(from)
			end := netipx.RangeOfPrefix(b).To()
			if r.To().Less(end) {
				end = r.To()
			}
			data := make([]byte, blockBytes)
			if have, err := os.ReadFile(blockPath(b)); err == nil {
				copy(data, have)
			}
			for i := firstClear(data, index(from)); i <= index(end); i = firstClear(data, i+1) {
				if !yield(at(b, i)) {
					return
				}
			}
			from = end.Next()
		}
	}
}

// firstClear is the first bit from i on that is clear; blockSize if none is.
func firstClear(data []byte, i int) int {
	for i < blockSize {
		word := binary.LittleEndian.Uint64(data[i/64*8:]) | (1<<(i%64) - 1) // as if those before i were set
		if free := bits.TrailingZeros64(^word); free < 64 {
			return i/64*64 + free
		}
		i = (i/64 + 1) * 64
	}
	return blockSize
}

// mark sets the address's bit. That it can't be set costs a look at the link each time, nothing else.
func (h hint) mark(a netip.Addr) {
	if !h.readOnly {
		_ = change(a, true)
	}
}

// unmark clears it. That it can't be cleared would lose the address, so then there is no bitmap.
func (hint) unmark(a netip.Addr) error {
	if change(a, false) != nil {
		return os.RemoveAll(mapsDir)
	}
	return nil
}

// change one bit, in one byte of the block's file. Clearing one makes no file.
func change(a netip.Addr, set bool) error {
	flags := os.O_RDWR
	if set {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(blockPath(block(a)), flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing is set there, or the bitmaps are to be made anew
	}
	if err != nil {
		return fmt.Errorf("bitmap of held addresses: %w", err)
	}
	i := index(a)
	b := make([]byte, 1)
	_, _ = f.ReadAt(b, int64(i/8)) // behind the file's end all are clear
	if set {
		b[0] |= 1 << (i % 8)
	} else {
		b[0] &^= 1 << (i % 8)
	}
	_, err = f.WriteAt(b, int64(i/8))
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("bitmap of held addresses: %w", err)
	}
	return nil
}

// older says whether addresses have come or gone since the bitmaps were last made from them.
func (hint) older() bool {
	links, err1 := os.Stat(addressesDir)
	made, err2 := os.Stat(filepath.Join(mapsDir, madeFile))
	return err1 != nil || err2 != nil || !made.ModTime().After(links.ModTime())
}

func (h hint) rebuildIfOlder() (bool, error) {
	if !h.older() {
		return false, nil
	}
	return true, h.rebuild()
}

// rebuild makes the bitmaps from the links: beside the old ones, and in their place when they are whole.
func (hint) rebuild() error {
	tmp := mapsDir + ".tmp"
	write := func(name string, data []byte) error { return os.WriteFile(filepath.Join(tmp, name), data, 0o600) }
	// What comes or goes while the links are listed is later than madeFile, or as late.
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o700), write(madeFile, nil)); err != nil {
		return fmt.Errorf("make the bitmaps of held addresses: %w", err)
	}
	held, err := Assignments()
	if err != nil {
		return err
	}
	blocks := map[netip.Prefix][]byte{}
	for a := range held {
		b := block(a)
		if blocks[b] == nil {
			blocks[b] = make([]byte, blockBytes)
		}
		blocks[b][index(a)/8] |= 1 << (index(a) % 8)
	}
	for b, data := range blocks {
		err = errors.Join(err, write(filepath.Base(blockPath(b)), data))
	}
	if err == nil {
		err = errors.Join(os.RemoveAll(mapsDir), os.Rename(tmp, mapsDir))
	}
	if err != nil {
		return fmt.Errorf("make the bitmaps of held addresses: %w", err)
	}
	return nil
}
