// Command http-echo is the walkthrough's server: it sends the body of each request back, and logs the request.
package main

import (
	"flag"
	"io"
	"log"
	"net/http"
	"time"
)

func main() {
	addr := flag.String("listen", ":80", "address to listen on")
	flag.Parse()
	server := &http.Server{
		Addr: *addr, ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			log.Printf("%s %s from %s: %s", r.Method, r.URL, r.RemoteAddr, body)
			w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
			if _, err := w.Write(body); err != nil {
				log.Print(err)
			}
		}),
	}
	log.Fatal(server.ListenAndServe())
}
