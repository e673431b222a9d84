package nftnl

import (
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzWatch: no message is taken both for a change and for the end of a transaction.
func FuzzWatch(f *testing.F) {
	const nft = unix.NFNL_SUBSYS_NFTABLES << 8
	f.Add(uint16(nft|unix.NFT_MSG_NEWGEN), []byte("\x00\x00\x00\x00\x08\x00\x01\x00\x00\x00\x00\x07"))
	f.Add(uint16(nft|unix.NFT_MSG_NEWRULE),
		[]byte("\x02\x00\x00\x00\x0b\x00\x01\x00mangle\x00\x00\x0c\x00\x02\x00FORWARD\x00"))
	f.Add(uint16(nft|unix.NFT_MSG_DELTABLE), []byte("\x07\x00\x00\x00\x09\x00\x01\x00weir\x00\x00\x00\x00"))
	f.Add(uint16(nft|unix.NFT_MSG_DELCHAIN), []byte("\x02\x00\x00\x00\xff\xff\x01\x00m"))
	f.Add(uint16(0), []byte{})
	f.Fuzz(func(t *testing.T, kind uint16, data []byte) {
		m := syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: data}
		_, changes := changeIn(m)
		if _, ends := generationIn(m); changes && ends {
			t.Error("a change is taken for the end of a transaction too")
		}
	})
}
