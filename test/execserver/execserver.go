// Package execserver answers exec requests as an API server does, for tests.
package execserver

import (
	"encoding/json"
	"io"
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// Serve answers an exec request over a WebSocket. It calls the function run in place of the command. If run returns an
// error, the client is told that the command has failed. When the client leaves, Serve closes the channel gone.
func Serve(
	w http.ResponseWriter, r *http.Request,
	run func(command []string, stdin io.Reader, stdout, stderr io.Writer, gone <-chan struct{}) error,
) {
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{"v5.channel.k8s.io": {
		Binary: true, Channels: []wsstream.ChannelType{ // stdin, stdout, stderr, the result, and the terminal's size
			wsstream.ReadChannel, wsstream.WriteChannel, wsstream.WriteChannel, wsstream.WriteChannel, wsstream.ReadChannel,
		},
	}})
	_, streams, err := conn.Open(w, r)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	gone := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, streams[4])
		close(gone)
	}()
	done := metav1.Status{Status: metav1.StatusSuccess}
	if err := run(r.URL.Query()["command"], streams[0], streams[1], streams[2], gone); err != nil {
		done = metav1.Status{Status: metav1.StatusFailure, Message: err.Error(), Code: http.StatusInternalServerError}
	}
	_ = json.NewEncoder(streams[3]).Encode(done)
}
