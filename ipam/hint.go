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
	// mapsDir has a file for each block of addresses, with one bit for each address. A block without
	// assignments so far has no file.
	mapsDir = endpoint.Dir + "/addresses.maps"
	// madeFile is the name of an empty file in mapsDir. The file's modification time is the time of the bitmaps' last
	// rebuild.
	madeFile = "made"

	blockBits  = 15
	blockSize  = 1 << blockBits // this many addresses need a file of 4 KiB
	blockBytes = blockSize / 8
)

// hint reads and changes the bitmaps of assigned addresses. They have one bit for each address. The bit is set if the
// address is probably assigned. So a search for a free address needn't look at the symbolic links of all assigned
// addresses (see the package's comment).
//
// A symbolic link is made before its bit is set, and a bit is cleared before its symbolic link is removed. So after a
// crash, an assigned address may have a clear bit. The next search that meets such an address sets the bit. If the
// bitmaps were damaged, a free address may have a set bit. So pick rebuilds the bitmaps if the search finds no free
// address and symbolic links have changed since the last rebuild.
type hint struct {
	readOnly bool // true for callers that don't have endpoint.Lock
}

func (h hint) ensure() error {
	if _, err := os.Lstat(mapsDir); err == nil {
		return nil
	}
	return h.rebuild()
}

func block(a netip.Addr) netip.Prefix {
	return netip.PrefixFrom(a, a.BitLen()-blockBits).Masked()
}

func blockPath(p netip.Prefix) string { return filepath.Join(mapsDir, p.Addr().String()) }

func index(a netip.Addr) int {
	b := a.AsSlice()
	return int(binary.BigEndian.Uint16(b[len(b)-2:])) & (blockSize - 1)
}

func at(p netip.Prefix, i int) netip.Addr {
	b := p.Addr().AsSlice()
	end := b[len(b)-2:]
	binary.BigEndian.PutUint16(end, binary.BigEndian.Uint16(end)|uint16(i))
	a, _ := netip.AddrFromSlice(b)
	return a
}

// free yields those addresses of the range that have a clear bit, in order. If a block's file is missing or unreadable,
// all bits of the block count as clear.
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

func firstClear(data []byte, i int) int {
	for i < blockSize {
		word := binary.LittleEndian.Uint64(data[i/64*8:]) | (1<<(i%64) - 1) // the bits before i count as set
		if free := bits.TrailingZeros64(^word); free < 64 {
			return i/64*64 + free
		}
		i = (i/64 + 1) * 64
	}
	return blockSize
}

// mark sets the address's bit, unless h is read-only. If setting the bit fails, the bit stays clear, and each search
// for a free address looks for the address's symbolic link.
func (h hint) mark(a netip.Addr) {
	if !h.readOnly {
		_ = change(a, true)
	}
}

// unmark clears the address's bit. If clearing the bit fails, unmark deletes all bitmaps, because a search for a free
// address would skip an address with a set bit.
func (hint) unmark(a netip.Addr) error {
	if change(a, false) != nil {
		return os.RemoveAll(mapsDir)
	}
	return nil
}

// change sets or clears the address's bit in the file of the address's block. A missing file has only clear bits.
func change(a netip.Addr, set bool) error {
	flags := os.O_RDWR
	if set {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(blockPath(block(a)), flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a block without a file has only clear bits
	}
	if err != nil {
		return fmt.Errorf("bitmap of assigned addresses: %w", err)
	}
	i := index(a)
	b := make([]byte, 1)
	_, _ = f.ReadAt(b, int64(i/8)) // bits beyond the file's end are clear
	if set {
		b[0] |= 1 << (i % 8)
	} else {
		b[0] &^= 1 << (i % 8)
	}
	_, err = f.WriteAt(b, int64(i/8))
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("bitmap of assigned addresses: %w", err)
	}
	return nil
}

func (hint) isStale() bool {
	links, err1 := os.Stat(addressesDir)
	made, err2 := os.Stat(filepath.Join(mapsDir, madeFile))
	return err1 != nil || err2 != nil || !made.ModTime().After(links.ModTime())
}

func (h hint) rebuildIfStale() (bool, error) {
	if !h.isStale() {
		return false, nil
	}
	return true, h.rebuild()
}

// rebuild makes new bitmaps from the symbolic links of the assigned addresses, in a directory that then replaces
// mapsDir.
func (hint) rebuild() error {
	tmp := mapsDir + ".tmp"
	write := func(name string, data []byte) error { return os.WriteFile(filepath.Join(tmp, name), data, 0o600) }
	// madeFile is written before the links are listed. If a link changes meanwhile, the bitmaps count as stale.
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o700), write(madeFile, nil)); err != nil {
		return fmt.Errorf("make the bitmaps of assigned addresses: %w", err)
	}
	assigned, err := Assignments()
	if err != nil {
		return err
	}
	blocks := map[netip.Prefix][]byte{}
	for a := range assigned {
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
		return fmt.Errorf("make the bitmaps of assigned addresses: %w", err)
	}
	return nil
}
